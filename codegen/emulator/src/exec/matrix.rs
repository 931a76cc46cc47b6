//! `ldmatrix` and `mma.sync`.
//!
//! A product is summed up exactly enough in f64 and rounded once to f32; a device rounds in an order of its own.

use super::machine::{Machine, Stop};
use super::memory::{Touch, value_at};
use super::warp::Warp;
use crate::alu::float::bits32;
use crate::alu::half::{bf16_to_f32, f16_to_f32};
use crate::error::Access;
use crate::lanes::{LANES, Mask, each};
use crate::memory::space::{Target, together};
use crate::parse::Space;
use crate::program::{Address, Multiply, Slot};

impl Warp {
    /// Lane `8 i + r` gives the address of row r of matrix i; lane `4 r + c` gets the elements 2c and 2c + 1 of row r.
    pub(super) fn load_matrix(
        &mut self,
        machine: &mut Machine,
        to: &[Slot],
        address: &Address,
        transposed: bool,
        here: Mask,
    ) -> Result<(), Stop> {
        let rows: Mask = if to.len() == 4 { Mask::MAX } else { (1 << (8 * to.len())) - 1 };
        let addresses = self.registers.addresses(address, rows & here);
        let (_, offsets, mask) = together(Space::Shared, &addresses, rows & here);
        let touch =
            Touch { target: Target::Shared, mask, access: Access::Read, bytes: 16, strong: false, cached: false };
        let indices = self.touch(machine, &touch, &offsets, &addresses)?;
        let data = &machine.shared.data;
        for (matrix, &slot) in to.iter().enumerate() {
            let element = |row: usize, column: usize| value_at(data, indices[8 * matrix + row] + 2 * column, 2) as u32;
            let value = std::array::from_fn(|lane| {
                let (row, column) = (lane / 4, 2 * (lane % 4));
                if transposed {
                    element(column + 1, row) << 16 | element(column, row)
                } else {
                    element(row, column + 1) << 16 | element(row, column)
                }
            });
            self.registers.set_word(slot, &value, here);
        }
        Ok(())
    }

    /// `d = a b + c` with a of 16 x depth, b of depth x 8.
    pub(super) fn multiply(&mut self, op: &Multiply, here: Mask) {
        let read = if op.brain { bf16_to_f32 } else { f16_to_f32 };
        let r = &self.registers;
        let mut a = [[0.0f64; 16]; 16];
        let mut b = [[0.0f64; 8]; 16];
        for lane in 0..LANES {
            let (group, pair) = (lane / 4, 2 * (lane % 4));
            for half in 0..2 {
                let part = |slot: Slot| f64::from(read(r.word(slot)[lane] >> (16 * half) & 0xffff));
                for (i, &slot) in op.a.iter().enumerate() {
                    a[group + 8 * (i % 2)][pair + 8 * (i / 2) + half] = part(slot);
                }
                for (i, &slot) in op.b.iter().enumerate() {
                    b[pair + 8 * i + half][group] = part(slot);
                }
            }
        }
        let mut out = [[0u32; LANES]; 4];
        for lane in each(here) {
            let (group, pair) = (lane / 4, 2 * (lane % 4));
            for (i, out) in out.iter_mut().enumerate() {
                let (row, column) = (group + 8 * (i / 2), pair + i % 2);
                let start = f64::from(f32::from_bits(r.word(op.c[i])[lane]));
                let sum = (0..op.depth).fold(start, |sum, k| sum + a[row][k] * b[k][column]);
                out[lane] = bits32(sum as f32);
            }
        }
        for (&slot, value) in op.d.iter().zip(&out) {
            self.registers.set_word(slot, value, here);
        }
    }
}
