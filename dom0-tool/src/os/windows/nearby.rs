//! An image as far as one page table, one large page or its neighbours in physical memory show it.
//!
//! Most words that look like entries to an image's first page are none. What follows tells: the entries
//! behind a true one map the rest of the image, in which the kernel's debug record is.

use lacuna_core::{GuestMemory, GuestPhys, PAGE_SIZE};

use super::locate::is_named_kernel;
use super::pe::{ImageSource, Machine, PeImage};

/// Where a page of the image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ImagePage {
    /// In this frame.
    Frame(u64),
    /// Nowhere: nothing maps it.
    Unmapped,
    /// Outside of what is looked at.
    Beyond,
}

/// An image whose pages are where `page_at` says, by their number.
pub(super) struct Nearby<'m, M: ?Sized, F> {
    memory: &'m mut M,
    page_at: F,
    /// Whether a page was asked for that is outside of what is looked at.
    went_beyond: bool,
}

impl<'m, M: GuestMemory + ?Sized, F: Fn(u64) -> ImagePage> Nearby<'m, M, F> {
    pub(super) fn new(memory: &'m mut M, page_at: F) -> Self {
        Self {
            memory,
            page_at,
            went_beyond: false,
        }
    }

    /// Whether this can be a kernel for one of `machines`: it is one, or what would tell lies outside of what
    /// is looked at.
    pub(super) fn can_be_kernel(mut self, machines: &[Machine]) -> bool {
        match PeImage::read(&mut self) {
            Ok(image) => {
                machines.contains(&image.machine)
                    && (self.went_beyond || image.debug.is_some() && is_named_kernel(&image))
            }
            Err(_) => self.went_beyond,
        }
    }
}

impl<M: GuestMemory + ?Sized, F: Fn(u64) -> ImagePage> ImageSource for Nearby<'_, M, F> {
    fn read(&mut self, rva: u32, into: &mut [u8]) -> bool {
        let page = PAGE_SIZE as u64;
        let mut done = 0;
        while done < into.len() {
            let at = u64::from(rva) + done as u64;
            let frame = match (self.page_at)(at / page) {
                ImagePage::Frame(frame) => frame,
                ImagePage::Unmapped => return false,
                ImagePage::Beyond => {
                    self.went_beyond = true;
                    return false;
                }
            };
            let here = GuestPhys::new(frame.saturating_mul(page).saturating_add(at % page));
            let length = (PAGE_SIZE - here.offset()).min(into.len() - done);
            if self.memory.read(here, &mut into[done..done + length]).is_err() {
                return false;
            }
            done += length;
        }
        true
    }
}
