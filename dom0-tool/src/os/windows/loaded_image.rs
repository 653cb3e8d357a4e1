//! An executable as the loader laid it out in a guest's virtual memory.

use lacuna_core::{GuestMemory, GuestVirt};

use super::pe::ImageSource;
use crate::os::view::AddressSpace;

/// An image that is loaded in a guest.
#[derive(Debug)]
pub struct LoadedImage<'m, M: ?Sized> {
    /// The guest's memory.
    pub memory: &'m mut M,
    /// Its address space.
    pub space: AddressSpace,
    /// Where the image begins.
    pub base: GuestVirt,
}

impl<M: GuestMemory + ?Sized> ImageSource for LoadedImage<'_, M> {
    fn read(&mut self, rva: u32, into: &mut [u8]) -> bool {
        match self.base.checked_add(u64::from(rva)) {
            Some(at) => self.space.read(self.memory, at, into),
            None => false,
        }
    }
}
