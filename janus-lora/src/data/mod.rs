//! data

use janus_core::Diagnose;

/// placeholder until the room is built
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {}
impl Diagnose for DataError {}
