//! processing

use crate::error::Diagnose;

/// placeholder until the room is built
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessingError {}
impl Diagnose for ProcessingError {}
