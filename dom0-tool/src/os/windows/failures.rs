//! What goes wrong with a Windows guest, its executables and its PDBs, and what to do about it.

use super::facts::FactsError;
use super::locate::LocateError;
use super::pdb::PdbError;
use super::pe::PeError;
use super::profile::ProfileError;
use crate::failure::{Class, Clues, Failure};

impl From<PdbError> for Failure {
    fn from(error: PdbError) -> Self {
        match error {
            PdbError::Io(_) => Self::plain(Class::Failed, error),
            _ => Self::new(
                Class::Refused,
                error,
                "fetch the PDB again from a symbol store; nothing of a damaged one is used",
            ),
        }
    }
}

impl From<LocateError> for Failure {
    fn from(error: LocateError) -> Self {
        // Nothing leads to what is there: it may be elsewhere than a raw file seems to have it.
        let is_unconfirmed = match &error {
            LocateError::Headless { .. } => true,
            LocateError::Unconfirmed { candidates } => {
                candidates.iter().all(|candidate| candidate.mapped_at.is_none())
            }
            _ => false,
        };
        let failure = match error {
            LocateError::Nothing { .. } => Self::plain(Class::NotFound, error),
            LocateError::Headless { .. } => Self::new(
                Class::NotFound,
                error,
                "the first page of the kernel's image is not in the dump, or something wrote over it: take the dump again, of all of memory",
            ),
            LocateError::Unconfirmed { .. } | LocateError::TooManyWays { .. } => Self::new(
                Class::Refused,
                error,
                "give the registers of a virtual CPU (--registers, or --cr3, alone or with --idt or --lstar), or the right PDB (--pdb)",
            ),
            LocateError::OtherRegisters { .. } => Self::new(
                Class::Refused,
                error,
                "memory and registers have to be of one guest at one moment: take both while it is stopped, or give no registers",
            ),
            LocateError::Disagree { .. } => Self::new(
                Class::Refused,
                error,
                "the registers are not those of one guest at one moment",
            ),
        };
        failure.with_clues(Clues {
            is_unconfirmed,
            ..Clues::default()
        })
    }
}

impl From<ProfileError> for Failure {
    fn from(error: ProfileError) -> Self {
        let clues = Clues {
            is_unconfirmed: matches!(&error, ProfileError::Unreadable { .. }),
            ..Clues::default()
        };
        let remedy = match &error {
            ProfileError::OtherKernel { .. } => {
                "name the PDB that the kernel's own debug record names (`lacuna identify`)"
            }
            ProfileError::Unknown(_) => "is it the PDB of a Windows kernel, with its types?",
            ProfileError::Unreadable { .. } => "is the dump whole, and of the kernel's own address space?",
            _ => "the guest's memory does not look as its PDB says",
        };
        Self::new(Class::Refused, error, remedy).with_clues(clues)
    }
}

impl From<FactsError> for Failure {
    fn from(error: FactsError) -> Self {
        match &error {
            FactsError::Io { cause, .. } if cause.kind() == std::io::ErrorKind::NotFound => {
                Self::plain(Class::NotFound, error)
            }
            FactsError::Io { .. } => Self::plain(Class::Failed, error),
            FactsError::Other { remedy, .. } => {
                let remedy = *remedy;
                Self::new(Class::Refused, error, remedy)
            }
            FactsError::Malformed { .. } => Self::new(
                Class::Refused,
                error,
                "export it again with this version of lacuna",
            ),
        }
    }
}

impl From<PeError> for Failure {
    fn from(error: PeError) -> Self {
        Self::new(
            Class::Refused,
            error,
            "only whole PE images of x86 and x64 can be inspected",
        )
    }
}
