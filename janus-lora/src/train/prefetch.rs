//! Rows read, decoded and resized ahead of the step that takes them, on threads of their own.
//!
//! What needs the model, features and codes, stays with the step ([`Draft::finish`]). The rows come in the order in which
//! they would come without the thread, and what is wrong with one comes out at its place.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use janus_core::noise;
use rayon::prelude::*;

use super::TrainError;
use super::tables::SampleState;
use crate::base::Base;
use crate::data::{Row, RowId, RowStream};
use crate::error::Result;
use crate::recipe::Recipe;
use crate::tasks::{Draft, Task};

/// Images in a row of which no pixels were taken, after which none are decoded ahead: all of them are in the cache.
const IMAGES_WITHOUT_PIXELS: usize = 64;

/// Rows of each table that are made ready ahead of the step: those of two steps, as far as a picture's 1.8 MB of pixels let
/// that be little memory.
pub(super) fn rows_ahead(recipe: &Recipe) -> usize {
    const BOUNDS: (u64, u64) = (8, 64);
    let rows = recipe.train.batch_size.saturating_mul(recipe.train.grad_accumulation).saturating_mul(2);
    rows.clamp(BOUNDS.0, BOUNDS.1) as usize
}

/// Threads that make the rows of a table ready: a quarter of the cores, so that the step has the rest for itself.
pub(super) fn row_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 4).clamp(1, 8))
}

/// A row as far as it needs no model.
#[derive(Debug)]
pub(super) struct Drafted {
    pub(super) row: RowId,
    pub(super) draft: Draft,
}

/// Makes the draft of the sample number `count` of a stream.
pub(super) fn draft(task: &dyn Task, base: &Base, key: u64, count: u64, row: Row) -> Result<Drafted> {
    match task.draft(base, Some(noise::uniform(key, count)), &row) {
        Ok(draft) => Ok(Drafted { row: row.id, draft }),
        Err(source) => Err(TrainError::Row { row: row.id, source: Box::new(source) }.into()),
    }
}

/// Endless drafts of one table.
#[derive(Debug)]
pub(super) struct Drafts {
    pub(super) rows: RowStream,
    pub(super) task: Arc<dyn Task>,
    pub(super) key: u64,
    pub(super) count: u64,
}

impl Drafts {
    /// The next rows with their numbers; the last one where a row cannot be read.
    fn next_rows(&mut self, most: usize) -> Vec<(u64, Result<Row>)> {
        let mut rows = Vec::with_capacity(most);
        while rows.len() < most && rows.last().is_none_or(|(_, row): &(u64, Result<Row>)| row.is_ok()) {
            rows.push((self.count, self.rows.next_row().map_err(Into::into)));
            self.count += 1;
        }
        rows
    }
}

type Message = std::result::Result<Result<Drafted>, Box<dyn Any + Send>>;

/// Threads that work ahead. They end when this is dropped, at the latest with the rows they are at.
#[derive(Debug)]
pub(super) struct ReadAhead {
    drafts: Receiver<Message>,
    place: SampleState,
    /// Images since pixels were last taken.
    without_pixels: Arc<AtomicUsize>,
    /// Held while rows are read and decoded; whether no more are wanted.
    at_work: Arc<Mutex<bool>>,
}

impl ReadAhead {
    /// Starts to work at most `rows` rows ahead, on `threads` threads.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn start(mut source: Drafts, base: Base, rows: usize, threads: usize) -> Result<Self> {
        let place = SampleState { position: source.rows.position(), count: source.count };
        let threads = threads.clamp(1, rows.max(1));
        // The rows that wait to be sent are among them.
        let (sender, drafts) = sync_channel::<Message>(rows.saturating_sub(threads));
        let without_pixels = Arc::new(AtomicUsize::new(0));
        let counter = without_pixels.clone();
        let at_work = Arc::new(Mutex::new(false));
        let held = at_work.clone();
        // A pool of its own: what resizes pictures in parallel elsewhere stays on these threads, and the step's pool is left
        // alone.
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|_| "rows".to_owned())
            .build()
            .map_err(|e| TrainError::Thread { reason: e.to_string() })?;
        pool.spawn(move || work(&mut source, &base, threads, &counter, &held, &sender));
        Ok(Self { drafts, place, without_pixels, at_work })
    }

    /// Where the next row stands.
    pub(super) fn place(&self) -> SampleState {
        self.place
    }

    /// Says where the row after the one just taken stands.
    pub(super) fn moved_to(&mut self, place: SampleState) {
        self.place = place;
    }

    /// The next row, as soon as it is there.
    ///
    /// # Errors
    /// What is wrong with it; nothing comes after it.
    pub(super) fn next(&mut self) -> Result<Drafted> {
        match self.drafts.recv() {
            Ok(Ok(drafted)) => drafted,
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => Err(TrainError::Thread { reason: "it ended before its time".into() }.into()),
        }
    }

    /// Waits until the rows under way are ready; no more are begun while the guard lives.
    pub(super) fn pause(&self) -> MutexGuard<'_, bool> {
        lock(&self.at_work)
    }

    /// Ends the threads, when the rows under way are ready.
    pub(super) fn end(self) {
        *lock(&self.at_work) = true;
    }

    /// Tells whether the images of a row were decoded to any purpose.
    pub(super) fn tell(&self, took_pixels: bool) {
        if took_pixels {
            self.without_pixels.store(0, Ordering::Relaxed);
        } else {
            self.without_pixels.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn lock(at_work: &Mutex<bool>) -> MutexGuard<'_, bool> {
    // Nothing lies behind it that a panic could leave half done.
    at_work.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work(
    source: &mut Drafts,
    base: &Base,
    threads: usize,
    without_pixels: &AtomicUsize,
    at_work: &Mutex<bool>,
    sender: &SyncSender<Message>,
) {
    loop {
        let under_way = lock(at_work);
        if *under_way {
            return;
        }
        let rows = match catch_unwind(AssertUnwindSafe(|| source.next_rows(threads))) {
            Ok(rows) => rows,
            Err(panic) => {
                // Nobody may be there to hear it.
                let _ = sender.send(Err(panic));
                return;
            }
        };
        let Drafts { task, key, .. } = &*source;
        let decodes = without_pixels.load(Ordering::Relaxed) < IMAGES_WITHOUT_PIXELS;
        let ready = |(count, row): (u64, Result<Row>)| {
            catch_unwind(AssertUnwindSafe(|| {
                let drafted = draft(task.as_ref(), base, *key, count, row?)?;
                if decodes {
                    drafted.draft.decode_ahead();
                }
                Ok(drafted)
            }))
        };
        let messages: Vec<Message> = rows.into_par_iter().map(ready).collect();
        drop(under_way);
        for message in messages {
            let ends = !matches!(message, Ok(Ok(_)));
            if sender.send(message).is_err() || ends {
                return;
            }
        }
    }
}
