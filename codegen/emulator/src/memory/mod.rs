//! Memory of the device: buffers with names, bounds, written bytes and, during a launch, who touched what.

pub mod race;
pub mod region;
pub mod space;

use crate::error::Error;
use region::Region;

/// Handle of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Buffer(pub(crate) u32);

/// All buffers of a device.
#[derive(Debug, Default)]
pub struct Memory {
    regions: Vec<Option<Region>>,
}

impl Memory {
    /// A new buffer.
    pub fn add(&mut self, region: Region) -> Buffer {
        self.regions.push(Some(region));
        Buffer(self.regions.len() as u32 - 1)
    }

    /// Takes a buffer away. Its address is never used again.
    pub fn remove(&mut self, buffer: Buffer) -> Result<(), Error> {
        self.get(buffer)?;
        self.regions[buffer.0 as usize] = None;
        Ok(())
    }

    /// A buffer.
    pub fn get(&self, buffer: Buffer) -> Result<&Region, Error> {
        self.regions.get(buffer.0 as usize).and_then(Option::as_ref).ok_or(Error::UnknownBuffer { number: buffer.0 })
    }

    /// A buffer, to change it.
    pub fn get_mut(&mut self, buffer: Buffer) -> Result<&mut Region, Error> {
        self.regions
            .get_mut(buffer.0 as usize)
            .and_then(Option::as_mut)
            .ok_or(Error::UnknownBuffer { number: buffer.0 })
    }

    /// The buffer of this number, if there is one.
    pub fn region(&mut self, number: u32) -> Option<&mut Region> {
        self.regions.get_mut(number as usize).and_then(Option::as_mut)
    }

    /// Buffers so far, with those that were freed.
    pub fn len(&self) -> usize {
        self.regions.len()
    }

    /// Takes back all but the first `len` buffers.
    pub fn truncate(&mut self, len: usize) {
        self.regions.truncate(len);
    }

    /// All buffers with their numbers.
    pub fn all(&mut self) -> impl Iterator<Item = (u32, &mut Region)> {
        self.regions.iter_mut().enumerate().filter_map(|(number, region)| Some((number as u32, region.as_mut()?)))
    }
}
