//! What the figures of evaluations are called, what they mean and which way is good.

/// Which way a figure gets better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Better {
    More,
    Less,
}

/// What is known of a figure.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// Its key in the metrics.
    pub(super) key: &'static str,
    /// Which way is good, where one is.
    pub(super) better: Option<Better>,
    /// The figure that says what an answer would get that never looks at the row.
    pub(super) blind: Option<&'static str>,
    /// What it means.
    pub(super) meaning: &'static str,
}

const fn entry(key: &'static str, better: Option<Better>, blind: Option<&'static str>, meaning: &'static str) -> Entry {
    Entry { key, better, blind, meaning }
}

const MORE: Option<Better> = Some(Better::More);
const LESS: Option<Better> = Some(Better::Less);

const ENTRIES: &[Entry] = &[
    entry(
        "loss",
        LESS,
        Some("frequency_loss"),
        "How unlikely the right answers are to the model, in nats a token; of a task with a head, that head's loss.",
    ),
    entry(
        "perplexity",
        LESS,
        None,
        "e to the power of the loss: among how many equally likely tokens the model wavers.",
    ),
    entry(
        "token_accuracy",
        MORE,
        None,
        "Share of the right answers' tokens that the model would have said, given the right ones before.",
    ),
    entry(
        "exact_match",
        MORE,
        Some("frequent_exact_match"),
        "Share of rows whose answer is the expected one to the letter.",
    ),
    entry(
        "bleu_4",
        MORE,
        Some("frequent_bleu_4"),
        "How many runs of one to four words the answers share with the expected ones, from 0 to 1.",
    ),
    entry(
        "rouge_l",
        MORE,
        Some("frequent_rouge_l"),
        "How much of the expected answer comes in its order, from 0 to 1, on average.",
    ),
    entry(
        "tower_distance",
        LESS,
        None,
        "How far a drawn picture is from the row's to the base's own vision tower; 0 is the same.",
    ),
    entry(
        "tower_frechet",
        LESS,
        None,
        "How far all drawn pictures together are from the rows', by the vision tower's features.",
    ),
    entry("lpips", LESS, None, "LPIPS: how different a drawn picture looks from the row's."),
    entry(
        "frechet_inception_distance",
        LESS,
        None,
        "FID: how far all drawn pictures together are from the rows', by Inception's features.",
    ),
    entry(
        "caption_agreement",
        MORE,
        None,
        "How much of the prompt the model finds again in its own picture (ROUGE-L).",
    ),
    entry("psnr", MORE, Some("mean_colour_psnr"), "How close pixels are to those of the row's picture, in decibels."),
    entry("ssim", MORE, None, "How alike the structure of both pictures is; 1 is the same."),
    entry("codes_used", None, None, "Share of the image tokenizer's codes that these pictures use."),
    entry("code_perplexity", None, None, "As many codes, used equally often, would tell as much."),
    entry("accuracy", MORE, Some("majority_accuracy"), "Share of rows whose label was answered."),
    entry("macro_f1", MORE, None, "F1 of each label, averaged over the labels, rare ones counting as much as others."),
    entry(
        "map_50",
        MORE,
        Some("mean_box_map_50"),
        "Mean average precision of boxes that overlap the true one by half or more.",
    ),
    entry("map_50_95", MORE, None, "The same, averaged over overlaps from 0.5 to 0.95."),
    entry("mean_iou", MORE, Some("mean_box_iou"), "How far the best box overlaps the true one, on average."),
    entry(
        "dice",
        MORE,
        Some("empty_mask_dice"),
        "How far the mask overlaps the true one, 1 being the same, on average over rows.",
    ),
    entry("iou", MORE, None, "The same as intersection over union."),
    entry("pooled_dice", MORE, None, "Dice of all rows' pixels together."),
    entry(
        "recall_at_1",
        MORE,
        Some("chance_recall_at_1"),
        "Share of pictures whose own caption is the most similar one.",
    ),
    entry("recall_at_5", MORE, None, "Share of pictures with their own caption among the 5 most similar."),
    entry("recall_at_10", MORE, None, "Share of pictures with their own caption among the 10 most similar."),
    entry(
        "caption_recall_at_1",
        MORE,
        Some("chance_recall_at_1"),
        "Share of captions whose own picture is the most similar one.",
    ),
    entry("caption_recall_at_5", MORE, None, "Share of captions with their own picture among the 5 most similar."),
    entry("caption_recall_at_10", MORE, None, "Share of captions with their own picture among the 10 most similar."),
];

/// What counts rows and the like: the same without and with an adapter.
pub(super) const COUNTS: &[&str] = &["rows", "tokens", "pictures"];

/// Figures that say most of a table, the first that it has standing for it.
const HEADLINES: &[&str] =
    &["exact_match", "accuracy", "map_50", "dice", "recall_at_1", "ssim", "psnr", "rouge_l", "tower_distance", "loss"];

/// Whether a figure is of a task with a head, which starts at random where the base has none.
pub(super) fn is_of_head(key: &str) -> bool {
    ["accuracy", "map_50", "dice", "recall_at_1"].contains(&key)
}

/// What is known of a figure; nothing of one of another program.
pub(super) fn lookup(key: &str) -> Option<&'static Entry> {
    ENTRIES.iter().find(|entry| entry.key == key)
}

/// Whether a figure is the same whatever is trained: what is counted, and what answers get that look at nothing.
pub(super) fn is_constant(key: &str) -> bool {
    COUNTS.contains(&key) || ENTRIES.iter().any(|entry| entry.blind == Some(key))
}

/// Which way a figure gets better, by its name where it is not known.
pub(super) fn better(key: &str) -> Option<Better> {
    if let Some(entry) = lookup(key) {
        return entry.better;
    }
    let named = |names: &[&str]| names.iter().any(|name| key.contains(name));
    match key {
        _ if is_constant(key) => None,
        _ if named(&["loss", "perplexity", "lpips", "fid", "error"]) => LESS,
        _ if named(&["accuracy", "match", "dice", "rouge", "bleu", "iou", "map", "recall", "precision", "f1"]) => MORE,
        _ => None,
    }
}

/// The figure that stands for a table, of those that it has; `value` gives one with the adapter.
pub(super) fn headline(value: impl Fn(&str) -> Option<f64>) -> Option<&'static str> {
    // A report or a caption is hardly ever the expected one to the letter: then the parts of it say more.
    let says_nothing = |key: &str| key == "exact_match" && value(key) == Some(0.0) && value("rouge_l") > Some(0.0);
    HEADLINES.iter().copied().find(|key| value(key).is_some() && !says_nothing(key))
}

/// Whether `now` is better than `was`; `None` where neither is, or nobody knows.
pub(super) fn verdict(key: &str, was: f64, now: f64) -> Option<bool> {
    let better = better(key)?;
    if !is_measured(key, was) || !is_measured(key, now) {
        return None;
    }
    (was != now).then_some((now > was) == (better == Better::More))
}

/// Whether a value says something: BLEU-4 is 0 where no answer has four words, however good the answers are; with one that
/// has, it is more than that.
pub(super) fn is_measured(key: &str, value: f64) -> bool {
    key != "bleu_4" || value != 0.0
}

/// A figure's name in words.
pub(super) fn name(key: &str) -> String {
    let known = match key {
        "bleu_4" => "BLEU-4",
        "rouge_l" => "ROUGE-L",
        "macro_f1" => "macro F1",
        "map_50" => "mAP at 0.5",
        "map_50_95" => "mAP at 0.5 to 0.95",
        "mean_iou" => "mean IoU",
        "iou" => "IoU",
        "dice" => "Dice",
        "pooled_dice" => "pooled Dice",
        "psnr" => "PSNR",
        "ssim" => "SSIM",
        "lpips" => "LPIPS",
        "frechet_inception_distance" => "FID",
        "tower_frechet" => "tower Fréchet distance",
        key => return key.replace('_', " "),
    };
    known.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn better_is_known_by_name() {
        assert_eq!(better("loss"), LESS);
        assert_eq!(better("exact_match"), MORE);
        assert_eq!(better("psnr"), MORE);
        assert_eq!(better("validation_error"), LESS);
        assert_eq!((better("rows"), better("frequency_loss"), better("majority_accuracy")), (None, None, None));
        assert_eq!((verdict("loss", 2.0, 1.0), verdict("loss", 1.0, 2.0)), (Some(true), Some(false)));
        assert_eq!((verdict("dice", 0.2, 0.1), verdict("dice", 0.2, 0.2)), (Some(false), None));
        assert_eq!(verdict("codes_used", 0.1, 0.2), None);
        // Answers of fewer than four words are neither better nor worse for it.
        assert_eq!((verdict("bleu_4", 0.02, 0.0), verdict("bleu_4", 0.0, 0.5)), (None, None));
        assert_eq!((verdict("bleu_4", 0.2, 0.1), verdict("rouge_l", 0.02, 0.0)), (Some(false), Some(false)));
    }

    #[test]
    fn a_table_is_told_by_the_figure_that_says_most() {
        let of = |figures: &[(&str, f64)]| {
            headline(|key| figures.iter().find(|(own, _)| *own == key).map(|(_, value)| *value))
        };
        assert_eq!(of(&[("loss", 1.0), ("exact_match", 0.5), ("rouge_l", 0.6)]), Some("exact_match"));
        assert_eq!(of(&[("loss", 1.0), ("exact_match", 0.0), ("rouge_l", 0.6)]), Some("rouge_l"));
        assert_eq!(of(&[("loss", 1.0), ("exact_match", 0.0), ("rouge_l", 0.0)]), Some("exact_match"));
        assert_eq!(of(&[("loss", 1.0), ("tokens", 3.0)]), Some("loss"));
        assert_eq!(of(&[("rows", 1.0)]), None);
    }
}
