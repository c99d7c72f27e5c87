//! recipe

use janus_core::Diagnose;

/// placeholder until the room is built
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {}
impl Diagnose for RecipeError {}
