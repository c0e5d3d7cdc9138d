//! Rollups: readings of a metric in calendar buckets across the hierarchy.
//!
//! Three steps, the last two pure: read the readings of the entities in question, as rows or summed up by day ([`read`]); aggregate
//! each entity and bucket on its own ([`aggregate`]); decide which entities count in which bucket and combine them
//! ([`resolve`]). Raw samples of different entities are never mixed.

mod aggregate;
mod balance;
mod bucket;
mod choice;
mod ends;
mod execute;
mod read;
mod request;
mod resolve;

pub(crate) use balance::balance;
pub(crate) use bucket::{Buckets, Width};
pub(crate) use execute::{rollup, rollup_of};
pub(crate) use request::{RollupParams, RollupRequest};

#[cfg(test)]
mod tests;
