//! Copies in the background.

use shadowllm_emulator::Arg;

use crate::support::{Numbers, bits, everywhere, launch};

#[test]
fn tiles_arrive_before_they_are_read() {
    everywhere("async_copy", |device, module| {
        for vectors in [1usize, 64, 65, 200, 256] {
            let values = Numbers::new(vectors as u64).floats(vectors * 4);
            let tiles = vectors.div_ceil(64);
            let (input, out) = (device.alloc_from("in", &values), device.alloc("out", 256));
            let args = [Arg::Buffer(input), Arg::Buffer(out), Arg::I32(vectors as i32), Arg::I32(tiles as i32)];
            let counters = launch(device, module, "tile_sums", 1, 64, &args);
            let expected: Vec<f32> = (0..64)
                .map(|thread| {
                    (0..tiles).fold(0.0f32, |sum, tile| {
                        let at = 4 * (tile * 64 + 63 - thread);
                        let v = |i: usize| values.get(at + i).copied().unwrap_or(0.0);
                        sum + (((v(0) + v(1)) + v(2)) + v(3))
                    })
                })
                .collect();
            assert_eq!(bits(&device.download(out).unwrap()), bits(&expected), "{vectors} vectors");
            assert_eq!(counters.global.read_bytes, 16 * vectors as u64);
        }
    });
}
