//! The queue: requests wait, join the session when there is room, go on step by step, and end.

use std::collections::{BTreeMap, VecDeque};

use candle_core::DType;
use janus_core::pass::{Mixture, Part, Pass};
use janus_core::sample::{RowId, RowLogits, RowOptions, Session};
use janus_core::{Janus, ModelError};

use super::limits::Limits;
use super::pictures::picture;
use super::prompts::{Joining, Prompt, routed};
use super::request::{Answer, HeadRequest, Kind, PictureAnswer, Request, TextAnswer};
use crate::adapter::{Adapter, AdapterError, Bank, Group};
use crate::base::Base;
use crate::culprit::finite;
use crate::error::Result;
use crate::heads::{Features, Head, HeadAnswer, Heads};
use crate::tasks::{features, last_hidden};

/// Pictures that heads are asked about and the vision tower encodes in one pass.
const PICTURES: usize = 8;
/// Requests that wait or go on for each row that may go on.
const AHEAD: usize = 2;
/// What a head reads, as errors name it.
const FEATURES: &str = "squared features of the picture";
/// What a head computes, as errors name it.
const HEAD: &str = "values of the head";

/// Names a request, in the order in which they were submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

/// What happened to a request in a step.
#[derive(Debug)]
pub enum Event {
    /// It drew a token of its text, or a code of its picture.
    Drew {
        /// The request.
        request: RequestId,
        /// The token or code.
        token: u32,
    },
    /// It ended: with its answer, or with what kept it from one.
    Ended {
        /// The request.
        request: RequestId,
        /// What came of it.
        answer: Result<Answer>,
    },
}

/// Whose corrections answer.
enum Adapters<'m> {
    /// Those that are attached to the model, with these heads, for every request.
    Attached(&'m Heads),
    /// Those that each request names.
    Bank(Bank<'m>),
}

/// A request that is not begun.
struct Waiting {
    id: RequestId,
    request: Request,
    /// How it draws; `None` of heads.
    row: Option<RowOptions>,
}

/// A request that goes on as a row of the session. Its pictures are not needed any more.
struct Running {
    id: RequestId,
    draws_picture: bool,
    adapters: Mixture,
}

/// Answers requests over one base, side by side.
pub struct Engine<'m> {
    model: &'m Janus,
    base: &'m Base,
    adapters: Adapters<'m>,
    limits: Limits,
    session: Session<'m>,
    waiting: VecDeque<Waiting>,
    running: BTreeMap<RowId, Running>,
    /// The copies of parameters that stand in for the model's.
    group: Group,
    submitted: u64,
}

impl<'m> Engine<'m> {
    /// An engine that answers with the model as it is, with what is attached to it and these heads.
    pub fn new(model: &'m Janus, base: &'m Base, heads: &'m Heads, limits: Limits) -> Self {
        Self::over(model, base, Adapters::Attached(heads), limits)
    }

    /// An engine whose requests name adapters of a bank. Nothing may be attached to the model.
    pub fn with_bank(model: &'m Janus, base: &'m Base, limits: Limits) -> Self {
        Self::over(model, base, Adapters::Bank(Bank::new(model)), limits)
    }

    fn over(model: &'m Janus, base: &'m Base, adapters: Adapters<'m>, limits: Limits) -> Self {
        let session = Session::new(model, limits.cache_tokens);
        let (waiting, running, group) = (VecDeque::new(), BTreeMap::new(), Group::default());
        Self { model, base, adapters, limits, session, waiting, running, group, submitted: 0 }
    }

    /// The bank, to load adapters into and to take them out of; `None` of an engine without one. An adapter that is taken out must
    /// not be asked any more.
    pub fn bank(&mut self) -> Option<&mut Bank<'m>> {
        match &mut self.adapters {
            Adapters::Attached(_) => None,
            Adapters::Bank(bank) => Some(bank),
        }
    }

    /// Loads an adapter into a slot of the bank.
    ///
    /// # Errors
    /// An engine without a bank, or an adapter that does not fit the model.
    pub fn load(&mut self, adapter: &Adapter) -> Result<janus_core::pass::Slot> {
        let bank = self.bank().ok_or(AdapterError::NoBank)?;
        Ok(bank.insert(adapter)?)
    }

    /// Requests that have not ended.
    pub fn pending(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    /// Tokens whose keys and values are reserved now.
    pub fn reserved_tokens(&self) -> usize {
        self.session.reserved_tokens()
    }

    /// Puts a request at the end of the queue.
    ///
    /// # Errors
    /// A request that can never be answered: a prompt without room for an answer, more keys and values than there are in all,
    /// adapters that cannot be asked together, or a head that none of its adapters has.
    pub fn submit(&mut self, request: Request) -> Result<RequestId> {
        let row = request.kind.row(self.base)?;
        if let Some(row) = &row {
            let (tokens, budget) = (row.cache_tokens(request.kind.prompt().len()), self.limits.cache_tokens);
            if tokens > budget {
                return Err(ModelError::NoRoom { tokens, budget }.into());
            }
        }
        self.group_of(&request.adapters)?;
        if let Kind::Head(asked) = &request.kind {
            self.head(&request.adapters, &asked.head)?;
        }
        let id = RequestId(self.submitted);
        self.submitted += 1;
        self.waiting.push_back(Waiting { id, request, row });
        Ok(id)
    }

    /// Gives a request up; what it held is free. Whether it had not ended.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        let before = self.pending();
        self.waiting.retain(|waiting| waiting.id != id);
        let rows: Vec<RowId> = self.running.iter().filter(|(_, own)| own.id == id).map(|(row, _)| *row).collect();
        for row in rows {
            self.session.leave(row);
            self.running.remove(&row);
        }
        self.pending() < before
    }

    /// Lets in what there is room for, in the order of the queue, and takes every row one token further.
    ///
    /// A request whose adapters bring other copies of parameters than those that go on waits until these have ended, and so do all
    /// behind it. Heads, which take no room, go past rows that wait for some.
    ///
    /// # Errors
    /// Those of the model; what fails of a single request ends that request alone.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        self.step_seen(&mut |_, _| {})
    }

    /// As [`Engine::step`]; `observe` sees the logits of every draw.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn step_seen(&mut self, observe: &mut dyn FnMut(RequestId, RowLogits<'_>)) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        let (rows, heads) = self.let_in()?;
        self.ask_heads(heads, &mut events)?;
        self.join(rows, &mut events)?;
        let Self { session, running, .. } = self;
        let drawn = session.step(&mut |logits| {
            if let Some(own) = running.get(&logits.row) {
                observe(own.id, logits);
            }
        })?;
        for own in drawn {
            let Some(Running { id, .. }) = self.running.get(&own.row) else { continue };
            let id = *id;
            match own.token {
                Ok(token) => events.push(Event::Drew { request: id, token }),
                Err(error) => {
                    self.session.leave(own.row);
                    self.running.remove(&own.row);
                    events.push(Event::Ended { request: id, answer: Err(error.into()) });
                    continue;
                }
            }
            if own.is_over
                && let (Some(running), Some(drawn)) = (self.running.remove(&own.row), self.session.leave(own.row))
            {
                let answer = self.answer(running.draws_picture, &running.adapters, drawn);
                events.push(Event::Ended { request: id, answer });
            }
        }
        Ok(events)
    }

    /// Answers requests, all together, in their order; `observe` is told every event.
    ///
    /// # Errors
    /// The first request that cannot be answered.
    pub fn answer_all(
        &mut self,
        requests: impl IntoIterator<Item = Request>,
        observe: &mut dyn FnMut(&Event),
    ) -> Result<Vec<Answer>> {
        let ids = requests.into_iter().map(|request| self.submit(request)).collect::<Result<Vec<_>>>()?;
        let mut answers: BTreeMap<RequestId, Answer> = BTreeMap::new();
        while self.pending() > 0 {
            for event in self.step()? {
                observe(&event);
                if let Event::Ended { request, answer } = event {
                    answers.insert(request, answer?);
                }
            }
        }
        Ok(ids.iter().filter_map(|id| answers.remove(id)).collect())
    }

    /// Answers requests as they come, without holding all of them: so many wait that the engine never runs dry. `told` gets each
    /// request's number and answer, in their order; a request that cannot be made is handed on as it is.
    ///
    /// # Errors
    /// Those of the model, and what `told` reports.
    pub fn answer_each(
        &mut self,
        requests: impl Iterator<Item = Result<Request>>,
        told: &mut dyn FnMut(usize, Result<Answer>) -> Result<()>,
    ) -> Result<()> {
        let most = AHEAD * self.limits.rows.max(1);
        let mut numbers: BTreeMap<RequestId, usize> = BTreeMap::new();
        let mut known: BTreeMap<usize, Result<Answer>> = BTreeMap::new();
        let (mut next, mut requests) = (0, requests.enumerate().peekable());
        loop {
            while self.pending() < most && known.len() < most {
                let Some((number, request)) = requests.next() else { break };
                match request.and_then(|request| self.submit(request)) {
                    Ok(id) => drop(numbers.insert(id, number)),
                    Err(error) => drop(known.insert(number, Err(error))),
                }
            }
            while let Some(answer) = known.remove(&next) {
                told(next, answer)?;
                next += 1;
            }
            if self.pending() == 0 && requests.peek().is_none() {
                return Ok(());
            }
            for event in self.step()? {
                let Event::Ended { request, answer } = event else { continue };
                if let Some(number) = numbers.remove(&request) {
                    known.insert(number, answer);
                }
            }
        }
    }

    /// What a request's tokens compute with, where requests name adapters.
    fn mixture<'a>(&self, adapters: &'a Mixture) -> Option<&'a Mixture> {
        match &self.adapters {
            Adapters::Attached(_) => None,
            Adapters::Bank(_) => Some(adapters),
        }
    }

    fn group_of(&self, adapters: &Mixture) -> Result<Group> {
        match &self.adapters {
            Adapters::Attached(_) if adapters.parts().is_empty() => Ok(Group::default()),
            Adapters::Attached(_) => Err(AdapterError::NoBank.into()),
            Adapters::Bank(bank) => Ok(bank.group(adapters)?),
        }
    }

    /// The head of this name among those of a request's adapters.
    fn head(&self, adapters: &Mixture, name: &str) -> Result<&Head> {
        let all: Vec<&Heads> = match &self.adapters {
            Adapters::Attached(heads) => vec![heads],
            Adapters::Bank(bank) => adapters.parts().iter().filter_map(|(slot, _)| bank.heads(*slot)).collect(),
        };
        let found = || all.iter().flat_map(|heads| heads.keys()).map(ToString::to_string).collect();
        let head = all.iter().find_map(|heads| heads.get(name));
        Ok(head.ok_or_else(|| AdapterError::NoHead { name: name.to_owned(), found: found() })?)
    }

    /// Takes what may begin now out of the queue: rows, and requests of heads.
    fn let_in(&mut self) -> Result<(Vec<Waiting>, Vec<Waiting>)> {
        if self.running.is_empty()
            && let Some(first) = self.waiting.front()
        {
            self.group = self.group_of(&first.request.adapters)?;
            if let Adapters::Bank(bank) = &mut self.adapters {
                bank.enter(&self.group)?;
            }
        }
        let (mut rows, mut heads, mut left): (Vec<Waiting>, Vec<Waiting>, VecDeque<Waiting>) = Default::default();
        let (taken, going_on) = (self.session.reserved_tokens(), self.running.len());
        let mut room = Room { limits: self.limits, taken, rows: going_on, prompt_tokens: None };
        let (mut is_full, placeholder) = (false, self.base.tokenizer().special().image_placeholder);
        while let Some(waiting) = self.waiting.pop_front() {
            if self.group_of(&waiting.request.adapters)? != self.group {
                left.push_back(waiting);
                break;
            }
            match &waiting.row {
                None if heads.len() < PICTURES => heads.push(waiting),
                None => left.push_back(waiting),
                Some(row) => {
                    let shared =
                        rows.first().map_or(0, |first| shared_tokens(&first.request, &waiting.request, placeholder));
                    if !is_full && room.take(row, waiting.request.kind.prompt().len(), shared) {
                        rows.push(waiting);
                    } else {
                        is_full = true;
                        left.push_back(waiting);
                    }
                }
            }
        }
        left.append(&mut self.waiting);
        self.waiting = left;
        Ok((rows, heads))
    }

    /// Lets rows join the session together. One whose pictures cannot be read ends alone.
    fn join(&mut self, rows: Vec<Waiting>, events: &mut Vec<Event>) -> Result<()> {
        let mut joining = Vec::with_capacity(rows.len());
        for waiting in rows {
            let images = waiting.request.kind.images();
            match images.iter().try_for_each(|image| image.prepare(self.model)) {
                Ok(()) => joining.push(waiting),
                Err(error) => events.push(Event::Ended { request: waiting.id, answer: Err(error) }),
            }
        }
        // A row without anything to draw has its answer.
        let (empty, joining): (Vec<Waiting>, Vec<Waiting>) =
            joining.into_iter().partition(|waiting| waiting.row.as_ref().is_some_and(|row| row.most == 0));
        for waiting in empty {
            let answer = self.answer(waiting.request.draws_picture(), &waiting.request.adapters, Vec::new());
            events.push(Event::Ended { request: waiting.id, answer });
        }
        if joining.is_empty() {
            return Ok(());
        }
        let mut prompts = Vec::with_capacity(joining.len());
        for Waiting { request, row, .. } in &joining {
            let is_guided = row.as_ref().is_some_and(RowOptions::is_guided);
            let (ids, images) = (request.kind.prompt(), request.kind.images());
            prompts.push(Prompt { ids, images, is_guided, adapters: self.mixture(&request.adapters) });
        }
        let Joining { pass, embeds, mask } = Joining::of(self.model, self.base, &prompts)?;
        let options = joining.iter().filter_map(|waiting| waiting.row.clone()).collect();
        let joined = self.session.join(&pass, &embeds, &mask, options)?;
        let joined = joined.expect("there is room for what was let in");
        for (row, Waiting { id, request, .. }) in joined.into_iter().zip(joining) {
            let draws_picture = request.draws_picture();
            self.running.insert(row, Running { id, draws_picture, adapters: request.adapters });
        }
        Ok(())
    }

    /// What comes of the tokens that a request drew.
    fn answer(&self, draws_picture: bool, adapters: &Mixture, drawn: Vec<u32>) -> Result<Answer> {
        if draws_picture {
            let picture = picture(self.model, self.base, &drawn, self.mixture(adapters))?;
            return Ok(Answer::Picture(PictureAnswer { codes: drawn, picture }));
        }
        let tokenizer = self.base.tokenizer();
        let is_whole = drawn.last() == Some(&tokenizer.special().eos);
        let text = tokenizer.decode(&drawn, true)?.trim().to_owned();
        Ok(Answer::Text(TextAnswer { text, token_ids: drawn, is_whole }))
    }

    /// Answers requests of heads: their pictures are encoded together, each head computes for itself.
    fn ask_heads(&self, heads: Vec<Waiting>, events: &mut Vec<Event>) -> Result<()> {
        let mut asked: Vec<(RequestId, &HeadRequest, &Head, Option<&Mixture>)> = Vec::with_capacity(heads.len());
        for Waiting { id, request, .. } in &heads {
            let Kind::Head(own) = &request.kind else { continue };
            let prepared = own.image.prepare(self.model).and_then(|()| self.head(&request.adapters, &own.head));
            match prepared {
                Ok(head) => asked.push((*id, own, head, self.mixture(&request.adapters))),
                Err(error) => events.push(Event::Ended { request: *id, answer: Err(error) }),
            }
        }
        if asked.is_empty() {
            return Ok(());
        }
        let images: Vec<_> = asked.iter().map(|(_, own, ..)| own.image.clone()).collect();
        let patches = self.model.config().vision.num_patches();
        let pass = routed(Pass::answering(), Part::Vision, asked.iter().map(|(.., adapters)| *adapters), patches)?;
        let reads_low = asked.iter().any(|(_, _, head, _)| head.kind.form().reads_low());
        let features = features(self.model, &pass, &images, reads_low)?;
        for (place, (id, own, head, adapters)) in asked.into_iter().enumerate() {
            let answer = features.of_picture(place).map_err(Into::into);
            let answer = answer.and_then(|features| self.ask_head(own, head, adapters, &features));
            events.push(Event::Ended { request: id, answer: answer.map(Answer::Head) });
        }
        Ok(())
    }

    fn ask_head(
        &self,
        asked: &HeadRequest,
        head: &Head,
        adapters: Option<&Mixture>,
        features: &Features,
    ) -> Result<HeadAnswer> {
        let captions: Vec<&[u32]> = asked.captions.iter().map(Vec::as_slice).collect();
        let hidden = if captions.is_empty() {
            None
        } else {
            let tokens = captions.iter().map(|ids| ids.len()).sum();
            let pass = routed(Pass::answering(), Part::Decoder, std::iter::once(adapters), tokens)?;
            Some(last_hidden(self.model, &pass, &captions)?)
        };
        // Heads divide by the features' deviation: what is beyond the squares that f32 holds would come out as nothing at all.
        for own in features.low.iter().chain([&features.mid]) {
            finite(own.to_dtype(DType::F32)?.sqr()?, FEATURES)?;
        }
        let config = self.model.config();
        let output = head.output(config, features, hidden.as_ref())?;
        let output = output.into_iter().map(|tensor| finite(tensor, HEAD)).collect::<Result<Vec<_>>>()?;
        Ok(head.kind.form().answer(config, &output, &asked.frame)?)
    }
}

/// What is taken of the limits.
struct Room {
    limits: Limits,
    /// Tokens whose keys and values are reserved.
    taken: usize,
    rows: usize,
    /// Tokens that the prompts of the rows that join are computed with; `None` before the first.
    prompt_tokens: Option<usize>,
}

impl Room {
    /// Takes room for a row that joins, if there is some; so many tokens of its prompt are computed already.
    fn take(&mut self, row: &RowOptions, prompt: usize, shared: usize) -> bool {
        let (tokens, own) = (row.cache_tokens(prompt), (prompt - shared) * row.branches());
        let prompt_tokens = self.prompt_tokens.unwrap_or(0) + own;
        let fits = tokens <= self.limits.cache_tokens.saturating_sub(self.taken)
            && self.rows < self.limits.rows.max(1)
            && (self.prompt_tokens.is_none() || prompt_tokens <= self.limits.prompt_tokens);
        if fits {
            (self.taken, self.rows) = (self.taken + tokens, self.rows + 1);
            self.prompt_tokens = Some(prompt_tokens);
        }
        fits
    }
}

/// Tokens with which the prompts of two requests begin alike, so that they are computed once.
fn shared_tokens(one: &Request, other: &Request, placeholder: u32) -> usize {
    if one.adapters != other.adapters {
        return 0;
    }
    let (images, of_other) = (one.kind.images(), other.kind.images());
    let same_images = images.len() == of_other.len() && images.iter().zip(of_other).all(|(a, b)| a.is(b));
    let pairs = one.kind.prompt().iter().zip(other.kind.prompt());
    // The places of different pictures are alike, and what stands there is not.
    pairs.take_while(|(a, b)| a == b && (same_images || **a != placeholder)).count()
}
