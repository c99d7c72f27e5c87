//! `janus cache`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Subcommand;
use janus_core::hub::HubOptions;
use serde_json::{Value, json};

use super::out::{done, result};
use super::report;
use super::status::Terminal;
use crate::cache::stock::{Item, StockKind, items};
use crate::cache::{CacheSettings, LIMIT_VARIABLE};
use crate::error::{Error, Result};
use crate::status::Status;

const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Subcommand)]
pub(super) enum CacheCommand {
    /// Show what is kept, what it takes and when it was last used
    ///
    /// `JANUS_CACHE_LIMIT_BYTES` limits what is kept: before room is needed and when a command is over, what was used longest ago
    /// is given up until the rest fits, but nothing that a command uses at that moment. 0 keeps nothing.
    #[command(after_help = "Examples:
  janus cache list
  janus cache list --json
  JANUS_CACHE_LIMIT_BYTES=2000000000 janus train recipe.toml")]
    List {
        /// Print one JSON object: folder, hub_folder, limit_bytes, total_bytes, kinds (kind, items, bytes, last_used), items
        /// (kind, name, path, bytes, last_used, in_use) without features and codes
        #[arg(long)]
        json: bool,
    },
    /// Remove what is kept and in no use; nothing else in these folders is touched
    #[command(after_help = "Examples:
  janus cache clear features codes
  janus cache clear bases --older-than 30
  janus cache clear --all --json")]
    Clear {
        /// What to remove
        #[arg(value_enum)]
        kinds: Vec<StockKind>,
        /// Everything, downloads included
        #[arg(long, conflicts_with = "kinds")]
        all: bool,
        /// Only what was not used for so many days
        #[arg(long, value_name = "DAYS")]
        older_than: Option<f64>,
        /// Print one JSON object: removed (kind, items, bytes), freed_bytes, in_use (names)
        #[arg(long)]
        json: bool,
    },
}

impl CacheCommand {
    pub(super) fn run(self) -> Result<()> {
        match self {
            CacheCommand::List { json } => list(json),
            CacheCommand::Clear { kinds, all, older_than, json } => {
                if kinds.is_empty() && !all && older_than.is_none() {
                    let names: Vec<&str> = StockKind::ALL.into_iter().map(StockKind::name).collect();
                    return Err(Error::Usage {
                        message: "nothing says what to remove".into(),
                        hint: format!("give kinds ({}), `--older-than DAYS`, or `--all`", names.join(", ")),
                    });
                }
                let least = match older_than {
                    None => Duration::ZERO,
                    Some(days) => Duration::try_from_secs_f64(days * DAY.as_secs_f64()).map_err(|_| Error::Usage {
                        message: format!("`--older-than {days}` is not a number of days"),
                        hint: "give 0 or a positive number".into(),
                    })?,
                };
                let is_meant = |kind: StockKind| kinds.is_empty() || kinds.contains(&kind);
                clear(&is_meant, least, json)
            }
        }
    }
}

/// The settings, where a hub's cache counts whether it is limited or not.
fn settings() -> Result<CacheSettings> {
    let settings = CacheSettings::from_environment()?;
    // Settings of a hub that cannot be used are no matter of what is here.
    let hub_folder = HubOptions::from_env().ok().map(|options| options.cache_dir);
    Ok(CacheSettings { hub_folder, ..settings })
}

/// Kinds with their number of items, bytes and last use.
fn by_kind(items: &[Item]) -> BTreeMap<StockKind, (usize, u64, SystemTime)> {
    let mut kinds = BTreeMap::new();
    for item in items {
        let (count, bytes, used) = kinds.entry(item.kind).or_insert((0, 0, SystemTime::UNIX_EPOCH));
        *count += 1;
        *bytes += item.bytes;
        *used = item.used.max(*used);
    }
    kinds
}

/// Seconds since 1970.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// How long ago, in days or the unit below.
fn ago(time: SystemTime) -> String {
    let seconds = time.elapsed().unwrap_or_default().as_secs();
    match seconds {
        0..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// Features and codes are too many to be shown one by one.
fn is_shown(item: &Item) -> bool {
    !matches!(item.kind, StockKind::Features | StockKind::Codes | StockKind::Fingerprints)
}

fn list(json: bool) -> Result<()> {
    let settings = settings()?;
    let mut items = items(&settings.folder, settings.hub_folder.as_deref());
    items.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    let kinds = by_kind(&items);
    let total: u64 = items.iter().map(|item| item.bytes).sum();
    let own: u64 = items.iter().filter(|item| !is_on_hub(item.kind)).map(|item| item.bytes).sum();
    let limit = settings.limit(own);
    if json {
        let kinds: Vec<Value> = kinds
            .iter()
            .map(|(kind, (count, bytes, used))| {
                json!({ "kind": kind.name(), "items": count, "bytes": bytes, "last_used": seconds(*used) })
            })
            .collect();
        let items: Vec<Value> = items
            .iter()
            .filter(|item| is_shown(item))
            .map(|item| {
                json!({
                    "kind": item.kind.name(),
                    "name": item.name,
                    "path": item.path,
                    "bytes": item.bytes,
                    "last_used": seconds(item.used),
                    "in_use": item.is_in_use(),
                })
            })
            .collect();
        report::json(&json!({
            "folder": settings.folder,
            "hub_folder": settings.hub_folder,
            "limit_bytes": limit,
            "total_bytes": total,
            "kinds": kinds,
            "items": items,
        }));
        return Ok(());
    }
    let mut rows = Vec::new();
    for (kind, (count, bytes, used)) in &kinds {
        rows.push(vec![kind.name().to_owned(), count.to_string(), report::bytes(*bytes), ago(*used)]);
        for item in items.iter().filter(|item| item.kind == *kind && is_shown(item)) {
            let mark = if item.is_in_use() { ", in use" } else { "" };
            rows.push(vec![
                format!("  {}", item.name),
                String::new(),
                report::bytes(item.bytes),
                format!("{}{mark}", ago(item.used)),
            ]);
        }
    }
    if !rows.is_empty() {
        result!("{}\n", report::table(&["kind", "items", "bytes", "last used"], &rows));
    }
    result!("cache  {}", settings.folder.display());
    if let Some(hub) = &settings.hub_folder {
        result!("hub    {} (what janus downloaded)", hub.display());
    }
    result!("total  {}", report::bytes(total));
    let source = if settings.limit_bytes.is_some() { LIMIT_VARIABLE } else { "by default, without downloads" };
    let meaning = match limit {
        0 => "nothing is kept once the command is over that uses it",
        _ => "what was used longest ago goes first, and nothing that a command uses",
    };
    result!("limit  {} ({source}): {meaning}", report::bytes(limit));
    Ok(())
}

fn is_on_hub(kind: StockKind) -> bool {
    matches!(kind, StockKind::HubBases | StockKind::HubData)
}

fn clear(is_meant: &dyn Fn(StockKind) -> bool, least: Duration, json: bool) -> Result<()> {
    let settings = settings()?;
    let (mut removed, mut in_use): (Vec<Item>, Vec<String>) = (Vec::new(), Vec::new());
    for item in items(&settings.folder, settings.hub_folder.as_deref()) {
        if !is_meant(item.kind) || item.age() < least {
            continue;
        }
        match item.remove() {
            Ok(true) => removed.push(item),
            Ok(false) => in_use.push(item.name),
            Err(error) => Terminal.warn(&format!("`{}` stays: {error}", PathBuf::from(&item.path).display())),
        }
    }
    let freed: u64 = removed.iter().map(|item| item.bytes).sum();
    let kinds = by_kind(&removed);
    if json {
        let kinds: Vec<Value> = kinds
            .iter()
            .map(|(kind, (count, bytes, _))| json!({ "kind": kind.name(), "items": count, "bytes": bytes }))
            .collect();
        report::json(&json!({ "removed": kinds, "freed_bytes": freed, "in_use": in_use }));
        return Ok(());
    }
    for (kind, (count, bytes, _)) in &kinds {
        done!("{}: {count} removed, {}", kind.name(), report::bytes(*bytes));
    }
    done!("freed {}", report::bytes(freed));
    for name in in_use {
        Terminal.note(&format!("`{name}` is in use and stays"));
    }
    Ok(())
}
