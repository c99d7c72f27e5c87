//! Answers over one base: questions, pictures, edits, and what heads tell of pictures.
//!
//! Requests of every kind go into an [`Engine`], wait there until there is room, and are answered side by side: each with its own
//! adapters, length, temperature and seed. What a request is answered does not depend on its neighbours.
//!
//! | file | what |
//! | --- | --- |
//! | `request` | what is asked, and what comes of it |
//! | `engine` | the queue: requests wait, join, go on step by step, and end |
//! | `limits` | how many may go on at once |
//! | `prompts` | prompts and their pictures as the rows of one pass |
//! | `pictures` | pictures of image codes |

mod engine;
mod limits;
mod pictures;
mod prompts;
mod request;

pub use engine::{Engine, Event, RequestId};
pub use limits::Limits;
pub use request::{Answer, HeadRequest, Kind, PictureAnswer, PictureRequest, Request, TextAnswer, TextRequest};
