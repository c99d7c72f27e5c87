//! A recipe with overrides. What is accepted reads back equal from what is written of it into a run folder.
#![no_main]

use std::sync::LazyLock;

use janus_fuzz::{Scratch, parts};
use janus_lora::recipe;
use libfuzzer_sys::fuzz_target;

static PLACE: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|data: &[u8]| {
    let [text, first, second] = parts(data);
    let path = PLACE.write("recipe.toml", text);
    let overrides: Vec<String> =
        [first, second].iter().filter(|o| !o.is_empty()).map(|o| String::from_utf8_lossy(o).into_owned()).collect();
    match recipe::load(&path, &overrides, PLACE.folder()) {
        Ok(read) => {
            let written = PLACE.write("written.toml", recipe::to_toml(&read).as_bytes());
            let again = recipe::load(&written, &[], PLACE.folder()).expect("a written recipe is a recipe");
            assert_eq!(again, read);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
