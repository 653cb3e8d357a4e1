//! Learning by experiment what the kernel's `PageBuddy` looks at, and proving it.
//!
//! The kernel's own setter makes a descriptor free; then each of its bits is flipped in turn, and those whose
//! flip makes the kernel's own test say "not free" are the ones that it looks at. That finds every test of
//! the form `(descriptor & mask) == expected`, which all kernels since 2.6.18 use (a flag bit, a number, a
//! mask, a byte). That it *is* of that form is then proven: the finding and the kernel's test are both asked
//! about many descriptors, random ones and ones made to lie on the border, and must never differ.

use std::collections::BTreeMap;

use lacuna_core::{Blocks, BytesRule, Field, FreeRule, Order, Predicate};
use thiserror::Error;

use super::headers::HeaderTree;
use super::run::{Operation, RunError, Stub};
use super::toolchain::Compiler;
use crate::hex::hexadecimal;
use crate::os::linux::layout::{FORMAT, Known, Layout, Proof};

/// Descriptors of each of the kinds that the proof tries.
const PROOF_PER_KIND: usize = 40_000;
/// Where the pseudo-random descriptors begin: fixed, so that a refusal can be seen again. Any number would
/// do.
const SEED: u64 = 0x4c61_6375_6e61;

/// Why no rule was learnt.
#[derive(Debug, Error)]
pub enum LearnError {
    /// The stub failed while it was asked.
    #[error(transparent)]
    Run(#[from] RunError),
    /// After the kernel's setter its test still says "not free".
    #[error("the kernel's PageBuddy is false after its own __SetPageBuddy, on every descriptor tried")]
    NeverFree,
    /// The kernel's test says "free" after its own `__ClearPageBuddy`.
    #[error("the kernel's PageBuddy is still true after its own __ClearPageBuddy")]
    NeverInUse,
    /// No single bit matters, or those that do lie too far apart for one number.
    #[error(
        "the kernel's PageBuddy looks at bits {first} to {last} of the descriptor, which is no test this tool can express"
    )]
    Shape {
        /// Lowest bit that matters.
        first: usize,
        /// Highest.
        last: usize,
    },
    /// Flipping single bits changes nothing.
    #[error("the kernel's PageBuddy depends on no single bit of the descriptor")]
    NoBit,
    /// The member that a setter writes is not one number.
    #[error("{setter} does not write one number of 1, 2, 4 or 8 bytes: it changed bytes {changed:?}")]
    Member {
        /// The kernel's function.
        setter: &'static str,
        /// Bytes of the descriptor that it changed.
        changed: Vec<usize>,
    },
    /// A number written by the setter is not the number read.
    #[error("{setter}({written}) left {found} in the descriptor")]
    MemberValue {
        /// The kernel's function.
        setter: &'static str,
        /// What was to be written.
        written: u64,
        /// What is there.
        found: u64,
    },
    /// The rule and the kernel differ.
    #[error(
        "the rule learnt and the kernel's PageBuddy differ on {disagreements} of {descriptors} descriptors, first on {example}"
    )]
    Disagree {
        /// How many differ.
        disagreements: u64,
        /// How many were tried.
        descriptors: u64,
        /// The first of them, in hexadecimal.
        example: String,
    },
    /// The proof tried too few descriptors of one kind.
    #[error("the proof is worth nothing: of {descriptors} descriptors {free} are free")]
    Vacuous {
        /// How many were tried.
        descriptors: u64,
        /// How many of them are free.
        free: u64,
    },
    /// The headers lack a number that every kernel has.
    #[error("the headers do not give {0}")]
    MissingFact(&'static str),
    /// A number is not one that x86 can have.
    #[error("the headers give {name} = {value}, which is not possible on x86")]
    BadFact {
        /// Which.
        name: &'static str,
        /// Its value.
        value: u64,
    },
    /// The kernel shuffles its structures, so offsets from headers mean nothing without its seed.
    #[error(
        "this kernel shuffles its structures (CONFIG_RANDSTRUCT), so its headers do not give their layout"
    )]
    Shuffled,
}

/// Numbers without end from a seed (splitmix64, Steele and others 2014).
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn descriptor(&mut self, size: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..size.div_ceil(8))
            .flat_map(|_| self.next().to_le_bytes())
            .collect();
        bytes.truncate(size);
        bytes
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap_or(0)
    }
}

/// Asks the stub everything and makes a layout of the answers.
///
/// # Errors
/// [`LearnError`].
pub fn learn(stub: &mut Stub, tree: &HeaderTree, compiler: Compiler) -> Result<Layout, LearnError> {
    if stub.greeting.fact("CONFIG_RANDSTRUCT").is_some() {
        return Err(LearnError::Shuffled);
    }
    if stub.greeting.fact("PAGE_SIZE") != Some(lacuna_core::PAGE_SIZE as u64) {
        return Err(LearnError::BadFact {
            name: "PAGE_SIZE",
            value: stub.greeting.fact("PAGE_SIZE").unwrap_or(0),
        });
    }
    let orders = stub
        .greeting
        .fact("orders")
        .ok_or(LearnError::MissingFact("orders"))?;
    let max_order = orders
        .checked_sub(1)
        .and_then(Order::new)
        .ok_or(LearnError::BadFact {
            name: "orders",
            value: orders,
        })?;

    let samples = free_samples(stub)?;
    let predicate = find_predicate(stub, &samples)?;
    let order = find_member(stub, Operation::SetOrder, "set_page_private", u64::MAX)?;
    let references = find_member(stub, Operation::SetOneReference, "init_page_count", 1)?;
    check_order(stub, order, u64::from(max_order.get()))?;
    let proof = prove(stub, &predicate)?;

    let compiled = format!(
        "headers of {}, compiled with {} {}",
        stub.greeting.release,
        compiler.program(),
        stub.greeting.compiler
    );
    let facts: BTreeMap<String, Known> = stub
        .greeting
        .facts
        .iter()
        .map(|fact| {
            (
                fact.name.clone(),
                Known {
                    value: fact.value,
                    source: compiled.clone(),
                },
            )
        })
        .collect();
    let descriptor_bytes =
        u16::try_from(stub.greeting.descriptor_bytes).map_err(|_| LearnError::BadFact {
            name: "sizeof(struct page)",
            value: stub.greeting.descriptor_bytes as u64,
        })?;
    Ok(Layout {
        format: FORMAT,
        release: stub.greeting.release.clone(),
        descriptor_bytes,
        free: FreeRule {
            predicate,
            conditions: std::iter::once(Predicate::zero(references)).collect(),
            blocks: Some(Blocks { order, max_order }),
            bytes: BytesRule::Any,
        },
        free_source: format!("PageBuddy and __SetPageBuddy run from the {compiled}"),
        headers: tree.generated.display().to_string(),
        proof,
        facts,
    })
}

/// Descriptors that the kernel's setter has made free, from several backgrounds. Not every background will
/// do: where the mark is a cleared bit (4.18 to 6.10) it is only true of a descriptor whose type was "none"
/// before.
fn free_samples(stub: &mut Stub) -> Result<Vec<Vec<u8>>, LearnError> {
    let size = stub.greeting.descriptor_bytes;
    let mut random = Random(SEED);
    let mut descriptors = vec![vec![0xff; size], vec![0; size]];
    descriptors.extend((0..64).map(|_| random.descriptor(size)));
    stub.perform_all(Operation::Set, 0, &mut descriptors)?;
    let verdicts = stub.perform_all(Operation::Test, 0, &mut descriptors)?;
    let free: Vec<Vec<u8>> = descriptors
        .into_iter()
        .zip(verdicts)
        .filter(|(_, verdict)| *verdict == 1)
        .map(|(bytes, _)| bytes)
        .collect();
    if free.is_empty() {
        return Err(LearnError::NeverFree);
    }
    let mut cleared = free.clone();
    stub.perform_all(Operation::Clear, 0, &mut cleared)?;
    if stub.perform_all(Operation::Test, 0, &mut cleared)?.contains(&1) {
        return Err(LearnError::NeverInUse);
    }
    Ok(free)
}

fn find_predicate(stub: &mut Stub, samples: &[Vec<u8>]) -> Result<Predicate, LearnError> {
    let sample = samples.first().ok_or(LearnError::NeverFree)?;
    let mut flipped: Vec<Vec<u8>> = (0..sample.len() * 8)
        .map(|bit| {
            let mut bytes = sample.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        })
        .collect();
    let verdicts = stub.perform_all(Operation::Test, 0, &mut flipped)?;
    let relevant: Vec<usize> = verdicts
        .iter()
        .enumerate()
        .filter(|(_, verdict)| **verdict == 0)
        .map(|(bit, _)| bit)
        .collect();
    let (Some(&first), Some(&last)) = (relevant.first(), relevant.last()) else {
        return Err(LearnError::NoBit);
    };

    // The narrowest aligned number that holds all bits that matter.
    let width = [1_usize, 2, 4, 8]
        .into_iter()
        .find(|width| first / (8 * width) == last / (8 * width))
        .ok_or(LearnError::Shape { first, last })?;
    let offset = first / (8 * width) * width;
    let shape = LearnError::Shape { first, last };
    let (Ok(offset_field), Ok(width_field)) = (u16::try_from(offset), u8::try_from(width)) else {
        return Err(shape);
    };
    if offset + width > sample.len() {
        return Err(shape);
    }
    let field = Field {
        offset: offset_field,
        width: width_field,
    };
    let mask = relevant
        .iter()
        .fold(0_u64, |mask, bit| mask | 1 << (bit - offset * 8));
    Ok(Predicate {
        field,
        mask,
        expected: value_of(sample, field) & mask,
    })
}

/// Where the member lies that `setter` writes: the bytes that differ afterwards, on a background of zeros or
/// ones.
fn find_member(
    stub: &mut Stub,
    operation: Operation,
    setter: &'static str,
    number: u64,
) -> Result<Field, LearnError> {
    let size = stub.greeting.descriptor_bytes;
    let mut changed = vec![false; size];
    for fill in [0x00, 0xff] {
        let before = vec![fill; size];
        let mut after = before.clone();
        stub.perform(operation, number, &mut after)?;
        for (flag, (old, new)) in changed.iter_mut().zip(before.iter().zip(&after)) {
            *flag |= old != new;
        }
    }
    let changed: Vec<usize> = changed
        .iter()
        .enumerate()
        .filter(|(_, flag)| **flag)
        .map(|(at, _)| at)
        .collect();
    let field = match (changed.first(), changed.len()) {
        (Some(&first), width @ (1 | 2 | 4 | 8)) if changed.last() == Some(&(first + width - 1)) => {
            u16::try_from(first).ok().zip(u8::try_from(width).ok())
        }
        _ => None,
    };
    let (offset, width) = field.ok_or(LearnError::Member { setter, changed })?;
    let field = Field { offset, width };
    let mut bytes = vec![0; size];
    stub.perform(operation, number, &mut bytes)?;
    let kept = if width == 8 {
        number
    } else {
        number & ((1 << (8 * width)) - 1)
    };
    let found = value_of(&bytes, field);
    if found == kept {
        Ok(field)
    } else {
        Err(LearnError::MemberValue {
            setter,
            written: number,
            found,
        })
    }
}

/// The order that the kernel writes is the number in the member, for every order it has.
fn check_order(stub: &mut Stub, field: Field, max_order: u64) -> Result<(), LearnError> {
    for order in 0..=max_order {
        let mut bytes = vec![0xff; stub.greeting.descriptor_bytes];
        stub.perform(Operation::SetOrder, order, &mut bytes)?;
        let read = stub.perform(Operation::Order, 0, &mut bytes)?;
        let found = value_of(&bytes, field);
        if found != order || read != order {
            return Err(LearnError::MemberValue {
                setter: "set_page_private",
                written: order,
                found,
            });
        }
    }
    Ok(())
}

/// Asks the kernel's test and `predicate` about descriptors of three kinds: random ones; random ones made to
/// satisfy the predicate; and those with one bit that matters flipped.
fn prove(stub: &mut Stub, predicate: &Predicate) -> Result<Proof, LearnError> {
    let size = stub.greeting.descriptor_bytes;
    let mut random = Random(SEED ^ u64::MAX);
    let mut proof = Proof {
        descriptors: 0,
        free: 0,
        seed: SEED,
    };
    let mut disagreements = 0;
    let mut example = None;
    let bits: Vec<u32> = (0..64).filter(|bit| predicate.mask >> bit & 1 == 1).collect();
    for kind in 0..3 {
        let mut descriptors: Vec<Vec<u8>> = (0..PROOF_PER_KIND)
            .map(|_| {
                let mut bytes = random.descriptor(size);
                let satisfied = value_of(&bytes, predicate.field) & !predicate.mask | predicate.expected;
                match kind {
                    0 => {}
                    1 => put_value(&mut bytes, predicate.field, satisfied),
                    _ => {
                        let flip = 1 << bits[random.below(bits.len())];
                        put_value(&mut bytes, predicate.field, satisfied ^ flip);
                    }
                }
                bytes
            })
            .collect();
        let verdicts = stub.perform_all(Operation::Test, 0, &mut descriptors)?;
        for (bytes, verdict) in descriptors.iter().zip(verdicts) {
            let ours = value_of(bytes, predicate.field) & predicate.mask == predicate.expected;
            proof.descriptors += 1;
            proof.free += verdict;
            if ours != (verdict == 1) {
                disagreements += 1;
                example.get_or_insert_with(|| hexadecimal(bytes));
            }
        }
    }
    if let Some(example) = example {
        return Err(LearnError::Disagree {
            disagreements,
            descriptors: proof.descriptors,
            example,
        });
    }
    let quarter = proof.descriptors / 4;
    if proof.free < quarter || proof.descriptors - proof.free < quarter {
        return Err(LearnError::Vacuous {
            descriptors: proof.descriptors,
            free: proof.free,
        });
    }
    Ok(proof)
}

/// The little-endian number in `field`.
fn value_of(bytes: &[u8], field: Field) -> u64 {
    let (offset, width) = (usize::from(field.offset), usize::from(field.width));
    let mut value = [0; 8];
    value[..width].copy_from_slice(&bytes[offset..offset + width]);
    u64::from_le_bytes(value)
}

fn put_value(bytes: &mut [u8], field: Field, value: u64) {
    let (offset, width) = (usize::from(field.offset), usize::from(field.width));
    bytes[offset..offset + width].copy_from_slice(&value.to_le_bytes()[..width]);
}
