//! Drawing tokens: answers from the text head, image codes from the generation head.
//!
//! A [`Session`] holds rows that answer side by side, each with its own length, temperature, seed and end; [`generate_text`] and
//! [`generate_codes`] are sessions whose rows come together and are waited for. What prompts have in common is computed once
//! (`prefill`).

mod codes;
mod prefill;
mod sampler;
mod session;
#[cfg(test)]
mod session_tests;
mod text;

pub use codes::{CodeOptions, CodePrompts, CodeStep, PromptImages, generate_codes, generate_first_codes};
pub use session::{Drawn, Kind, RowId, RowLogits, RowOptions, Session};
pub use text::{TextOptions, generate_text};

#[cfg(test)]
mod tests;
