//! A conversation as a template's text and as ids. Only the program places special tokens: a sample has as many image
//! places as images, however its texts are spelt.
#![no_main]

use std::sync::LazyLock;

use janus_core::processing::{
    ChatPart, IGNORE_INDEX, JanusTokenizer, Message, PromptBuilder, Role, render, render_transformers,
};
use janus_fuzz::Scratch;
use libfuzzer_sys::fuzz_target;

/// Rows that an image takes.
const IMAGE_TOKENS: usize = 3;

static PROMPTS: LazyLock<PromptBuilder> = LazyLock::new(|| {
    let base = Scratch::with_base();
    PromptBuilder::new(JanusTokenizer::from_folder(base.folder()).unwrap(), IMAGE_TOKENS)
});

/// A turn for each line `role images text`, `\n` in a text standing for a line feed.
fn messages(data: &[u8]) -> Option<Vec<Message>> {
    let text = std::str::from_utf8(data).ok()?;
    text.lines()
        .map(|line| {
            let mut words = line.splitn(3, ' ');
            let role: Role = words.next()?.parse().ok()?;
            let images = words.next()?.parse::<u8>().ok()?;
            let text = words.next().unwrap_or_default().replace("\\n", "\n");
            Some(Message { role, text, images: usize::from(images) })
        })
        .collect()
}

fuzz_target!(|data: &[u8]| {
    let Some(messages) = messages(data) else { return };
    let prompts = &*PROMPTS;
    let special = *prompts.tokenizer().special();
    let images: usize = messages.iter().map(|message| message.images).sum();
    let count = |ids: &[u32], token: u32| ids.iter().filter(|id| **id == token).count();

    for system in [false, true] {
        if let Ok(sample) = prompts.conversation_sample(&messages, system) {
            assert_eq!(sample.ids.len(), sample.labels.len());
            assert_eq!(count(&sample.ids, special.image_placeholder), images * IMAGE_TOKENS);
            assert_eq!(count(&sample.ids, special.begin_of_image), images);
            assert_eq!(count(&sample.ids, special.end_of_image), images);
            assert_eq!((sample.ids[0], count(&sample.ids, special.bos)), (special.bos, 1));
            let answers = messages.iter().filter(|message| message.role == Role::Assistant).count();
            assert_eq!(count(&sample.ids, special.eos), answers);
            assert!(sample.ids.iter().zip(&sample.labels).all(|(id, l)| *l == IGNORE_INDEX || *l == i64::from(*id)));
            assert!(sample.labels.iter().any(|label| *label != IGNORE_INDEX));
        }
        if let Ok(ids) = prompts.conversation_prompt(&messages, system) {
            assert_eq!(count(&ids, special.image_placeholder), images * IMAGE_TOKENS);
            assert_eq!((ids[0], count(&ids, special.bos)), (special.bos, 1));
            let text = prompts.tokenizer().decode(&ids, true).expect("ids of the tokenizer's own");
            assert!(text.len() <= 8 * ids.len());
        }
    }
    let _ = render(prompts.style(), None, &messages);
    if let Some(first) = messages.first() {
        let _ = prompts.generation_prompt(&first.text);
        let _ = prompts.edit_prompt(&first.text, first.images);
    }
    let parts: Vec<(Role, Vec<ChatPart>)> = messages
        .iter()
        .map(|m| {
            (m.role, std::iter::repeat_n(ChatPart::Image, m.images).chain([ChatPart::Text(m.text.clone())]).collect())
        })
        .collect();
    let rendered = render_transformers(&parts, true);
    assert!(rendered.ends_with("<|Assistant|>:"));
});
