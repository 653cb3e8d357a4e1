//! From what an operator types to a domain that exists.

use thiserror::Error;

use super::privcmd::{DomainId, DomainInfo, Privcmd, PrivcmdError};
use super::xenstore::{Xenstore, XenstoreError};

/// Why there is no such domain.
#[derive(Debug, Error)]
pub enum DomainError {
    /// No domain has this number or name.
    #[error("there is no domain {0:?}")]
    NotFound(String),
    /// Several domains have this name.
    #[error("domains {numbers:?} all have the name {name:?}")]
    Ambiguous {
        /// The name.
        name: String,
        /// Their numbers.
        numbers: Vec<u16>,
    },
    /// Names could not be looked up.
    #[error(transparent)]
    Xenstore(#[from] XenstoreError),
    /// The hypervisor could not be asked.
    #[error(transparent)]
    Privcmd(#[from] PrivcmdError),
}

/// A domain that exists.
#[derive(Clone, Debug)]
pub struct Domain {
    /// Its number.
    pub id: DomainId,
    /// Its name, where xenstore knows it.
    pub name: Option<String>,
    /// What Xen knows of it.
    pub info: DomainInfo,
}

/// Finds the domain that `text` means: a number, as `xl` takes it, or else a name.
///
/// # Errors
/// [`DomainError`].
pub fn find(privcmd: &Privcmd, text: &str) -> Result<Domain, DomainError> {
    let not_found = || DomainError::NotFound(text.to_owned());
    let id = match text.parse::<u16>() {
        Ok(number) => DomainId::new(number).ok_or_else(not_found)?,
        Err(_) => by_name(text)?,
    };
    let info = privcmd.domain_info(id)?.ok_or_else(not_found)?;
    Ok(Domain {
        id,
        name: name_of(id),
        info,
    })
}

fn by_name(name: &str) -> Result<DomainId, DomainError> {
    let mut store = Xenstore::connect()?;
    let mut numbers = Vec::new();
    for number in store
        .list("/local/domain")?
        .iter()
        .filter_map(|entry| entry.parse::<u16>().ok())
    {
        match store.read(&format!("/local/domain/{number}/name")) {
            Ok(found) if found == name => numbers.push(number),
            // A domain can go away between the two questions, or have no name.
            Ok(_) | Err(XenstoreError::Refused { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match numbers.as_slice() {
        [] => Err(DomainError::NotFound(name.to_owned())),
        [only] => DomainId::new(*only).ok_or_else(|| DomainError::NotFound(name.to_owned())),
        _ => Err(DomainError::Ambiguous {
            name: name.to_owned(),
            numbers,
        }),
    }
}

/// Returns the name of a domain, which is only shown: without xenstore there is none.
fn name_of(id: DomainId) -> Option<String> {
    Xenstore::connect()
        .ok()?
        .read(&format!("/local/domain/{}/name", id.get()))
        .ok()
}
