//! Why an operation is not carried out.

use crate::Status;

/// The answer to an operation that is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// What it is.
    status: Status,
    /// Where, what was found, and what was expected: in the order in which [`Status`] has them for `status`,
    /// and 0 where it has none.
    values: [u64; 4],
}

impl Refusal {
    /// Refuses with values of whose order the caller takes care.
    pub(crate) const fn new(status: Status, values: [u64; 4]) -> Self {
        Self { status, values }
    }

    /// Refuses where the status says everything.
    pub(crate) const fn of(status: Status) -> Self {
        Self::new(status, [0; 4])
    }

    /// Refuses a number of the request that is not known, or should be zero.
    pub(crate) const fn bad_request(found: u32) -> Self {
        Self::new(Status::BadRequest, [found as u64, 0, 0, 0])
    }

    /// Refuses a frame number that is above `limit`.
    pub(crate) const fn out_of_range(found: u64, limit: u64) -> Self {
        Self::new(Status::OutOfRange, [found, limit, 0, 0])
    }

    /// Refuses a buffer that has no room for `expected` bytes.
    pub(crate) const fn buffer_too_small(expected: u64) -> Self {
        Self::new(Status::BufferTooSmall, [expected, 0, 0, 0])
    }

    /// Refuses a domain whose memory cannot be shared, for the reason with number `reason`.
    pub(crate) const fn blocked((status, reason): (Status, u64)) -> Self {
        Self::new(status, [reason, 0, 0, 0])
    }

    /// What it is.
    pub(crate) const fn status(&self) -> Status {
        self.status
    }

    /// The values that cross the hypercall beside the status.
    pub(crate) const fn values(&self) -> [u64; 4] {
        self.values
    }
}
