//! A base as commands use it: the checkpoint with the tokenizer and the image processor that belong to it.

pub mod builtin;
mod published;
mod random;
mod site;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use janus_core::checkpoint::{Checkpoint, KnownFingerprints, TensorInfo};
use janus_core::config::JanusConfig;
use janus_core::home;
use janus_core::hub::{self, HubError, Progress};
use janus_core::model::held_dtype;
use janus_core::output::OutputError;
use janus_core::ownership::other_owner;
use janus_core::parameter::Parameter;
use janus_core::processing::{GenerationConfig, ImageProcessor, JanusTokenizer, PromptBuilder};
use janus_core::sample::CodeOptions;
use janus_core::site::{Site, sites};
use janus_core::{Diagnose, Fault, Janus, Parts};
use sha2::{Digest, Sha256};

use crate::cache::stock::{hold, make_room, note_use};
use crate::cache::{CacheError, CacheSettings, Image, ImageCache, Place};
use crate::data::{DataError, EncodedImage};
use crate::error::{Error, Result};
use crate::fingerprint::PendingFingerprint;
use crate::nearest::nearest;
use crate::status::Status;

pub use random::vocabulary_of;
pub use site::StoredSite;

/// How a base with random weights is named in a recipe: `init:SHAPE?seed=N&vocabulary=DOMAIN`.
const INIT_PREFIX: &str = "init:";

/// What helps where the cache folder cannot be written to.
pub const CACHE_HINT: &str = "set `JANUS_CACHE` to a folder with room that can be written to";

/// Digits of a hash that tells the folders of two versions apart.
pub(crate) const HASH_DIGITS: usize = 12;

/// A base that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BaseError {
    /// `init:` with something that is no shape.
    #[error("`{spec}` names no shape: `{shape}` is unknown")]
    UnknownShape {
        /// What was written.
        spec: String,
        /// The shape in it.
        shape: String,
    },
    /// `init:` with a malformed tail.
    #[error("`{spec}` is not of the form `init:SHAPE?seed=N&vocabulary=DOMAIN`")]
    MalformedInit {
        /// What was written.
        spec: String,
    },
    /// No folder and no hub id as it stands, but nearly the name of the built-in base or of a published one.
    #[error("there is no base `{spec}`")]
    Misspelt {
        /// What was written.
        spec: String,
        /// What may have been meant.
        meant: String,
    },
    /// A hub has nothing of that name, which is nearly that of a base.
    #[error("{error}")]
    NotFound {
        /// What the hub's room says.
        error: Box<HubError>,
        /// What may have been meant.
        meant: String,
    },
    /// The base of a run changed while it ran.
    #[error("the base's parameter `{name}` changed while training: this is a defect, the adapter is not saved")]
    Changed {
        /// The first parameter that differs.
        name: String,
    },
    /// A cache folder that cannot be written to.
    #[error("the cache folder `{}` cannot be written to", folder.display())]
    ReadOnlyCache {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: OutputError,
    },
    /// The files of the base changed under a run.
    #[error("`{}` was written to while it was in use: nothing that rests on it is saved", file.display())]
    Rewritten {
        /// The file.
        file: PathBuf,
    },
}

impl BaseError {
    /// What went wrong in making something in the cache folder; the folder is named where it cannot be written to.
    pub(crate) fn in_cache(folder: PathBuf, error: Error) -> Error {
        match error {
            Error::Core(janus_core::Error::Output(source)) | Error::Data(DataError::Output(source)) => {
                Self::ReadOnlyCache { folder, source }.into()
            }
            error => error,
        }
    }
}

impl Diagnose for BaseError {
    fn fault(&self) -> Fault {
        match self {
            BaseError::ReadOnlyCache { source: OutputError::Io { source, .. }, .. } if is_refusal(source) => {
                Fault::Input
            }
            BaseError::ReadOnlyCache { source, .. } => source.fault(),
            BaseError::Changed { .. } => Fault::Internal,
            BaseError::NotFound { error, .. } => error.fault(),
            _ => Fault::Input,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            BaseError::UnknownShape { shape, .. } => {
                let near = nearest(shape, JanusConfig::shape_names().iter().copied());
                vec![near.map_or_else(|| shape_hint(shape), |name| format!("did you mean `{INIT_PREFIX}{name}`?"))]
            }
            BaseError::MalformedInit { .. } => vec!["for example `init:janus-small?seed=1`".into()],
            BaseError::Misspelt { meant, .. } => vec![format!("did you mean `{meant}`?")],
            BaseError::NotFound { error, meant } => {
                let mut hints = vec![format!("did you mean `{meant}`?")];
                hints.extend(error.hints());
                hints
            }
            BaseError::Changed { .. } => Vec::new(),
            BaseError::ReadOnlyCache { .. } => vec![CACHE_HINT.into()],
            BaseError::Rewritten { .. } => {
                vec!["run again; put new weights into another folder, or rename them into place".into()]
            }
        }
    }
}

/// Whether a folder was named that this user cannot write to, rather than a disk that takes no more.
fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, NotADirectory, PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | NotADirectory | AlreadyExists)
}

/// Whether what a user calls a base has random weights.
pub fn is_random(spec: &str) -> bool {
    spec.starts_with(INIT_PREFIX)
}

/// Says of a base with random weights that it is one.
fn say_random(spec: &str, status: &dyn Status) {
    if is_random(spec) {
        status.note(&format!(
            "`{spec}` has random weights: it knows nothing, and what it says or draws means nothing before it is trained"
        ));
    }
}

/// Advice for a shape that does not exist.
pub fn shape_hint(shape: &str) -> String {
    let names = JanusConfig::shape_names();
    match nearest(shape, names.iter().copied()) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("shapes: {}", names.join(", ")),
    }
}

/// A checkpoint with what belongs to it. Copies share everything.
#[derive(Debug, Clone)]
pub struct Base {
    name: String,
    checkpoint: Arc<Checkpoint>,
    prompts: PromptBuilder,
    images: ImageProcessor,
    generation: GenerationConfig,
    cache: Arc<ImageCache>,
    place: Place,
}

impl Base {
    /// Opens what a user calls a base: a folder, a hub id, the built-in [`builtin::NAME`], or `init:SHAPE?seed=N` (random
    /// weights, made on first use and kept in the cache folder; with `&vocabulary=DOMAIN` and a tokenizer that learnt its
    /// merges from that domain of drawn data).
    ///
    /// # Errors
    /// Nothing of that name, or a checkpoint, tokenizer or image processor that cannot be used.
    pub fn open(spec: &str, status: &dyn Status) -> Result<Self> {
        say_random(spec, status);
        let folder = resolve(spec, status)?;
        let base = Self::open_folder(spec, &folder)?;
        base.prompts.tokenizer().notes().iter().for_each(|note| status.warn(note));
        Ok(base)
    }

    /// Opens as much of what a user calls a base as a plan needs, and leaves nothing behind in the cache but a hub's small files:
    /// weights that are not here are neither made nor fetched, and cannot be read.
    ///
    /// # Errors
    /// As [`Base::open`]; no folder for temporary files.
    pub fn outline(spec: &str, status: &dyn Status) -> Result<Self> {
        say_random(spec, status);
        let place = Place::scratch()?;
        let scratch = place.folder()?;
        let (folder, has_weights, tensors) = if spec == builtin::NAME {
            let kept = builtin::kept(&cache_folder()?);
            (kept.map_or_else(|| builtin::folder(&scratch), Ok)?, true, None)
        } else if is_random(spec) {
            let (folder, has_weights) = random::outline(spec, &scratch)?;
            (folder, has_weights, None)
        } else {
            let progress = status.download();
            let outline = from_hub(spec, &|| hub::outline_base(spec, progress.as_ref() as &dyn Progress))?;
            (outline.folder, outline.has_weights, outline.tensors)
        };
        let checkpoint = match has_weights {
            true => Checkpoint::open(&folder)?,
            false => Checkpoint::outline(&folder, tensors.as_ref())?,
        };
        Ok(Self { place, ..Self::with_checkpoint(spec, &folder, checkpoint)? })
    }

    /// Opens a base as [`Base::open`] does, if it is here: built in, a folder, of random weights that are here or few, or whole in
    /// the Hugging Face cache. Nothing is asked of a hub.
    ///
    /// # Errors
    /// As [`Base::open`], but for a name that nothing here has.
    pub fn open_present(spec: &str, status: &dyn Status) -> Result<Option<Self>> {
        if spec.starts_with(INIT_PREFIX) && !random::is_at_hand(spec, &cache_folder()?)? {
            return Ok(None);
        }
        let is_here = spec == builtin::NAME || spec.starts_with(INIT_PREFIX) || Path::new(spec).is_dir();
        if is_here {
            return Self::open(spec, status).map(Some);
        }
        let cached = hub::cached_base(spec, &hub::HubOptions::from_env()?)?;
        cached.map(|folder| Self::open_folder(spec, &folder)).transpose()
    }

    /// Opens a folder under a name of its own.
    ///
    /// # Errors
    /// As [`Base::open`].
    pub fn open_folder(name: &str, folder: &Path) -> Result<Self> {
        Self::with_checkpoint(name, folder, Checkpoint::open(folder)?)
    }

    fn with_checkpoint(name: &str, folder: &Path, checkpoint: Checkpoint) -> Result<Self> {
        let checkpoint = Arc::new(checkpoint);
        let config = checkpoint.config();
        let tokenizer = JanusTokenizer::from_folder(folder)?;
        tokenizer.check_vocabulary(config.text.vocab_size)?;
        let images = ImageProcessor::from_folder(folder, config.vision.image_size)?;
        let generation = GenerationConfig::from_folder(folder)?;
        let prompts = PromptBuilder::new(tokenizer, config.vision.num_patches());
        let cache = Arc::new(ImageCache::new(images.clone()));
        let (name, place) = (name.to_owned(), Place::Cache);
        Ok(Self { name, checkpoint, prompts, images, generation, cache, place })
    }

    /// The same base with these values in the place of its own, by native name: what a stage of a run has trained is what the
    /// next one begins with. Its cache is a new one.
    ///
    /// # Errors
    /// Names that it does not have, other shapes, or files that cannot be opened again.
    pub(crate) fn with_values<'a>(&self, values: impl Iterator<Item = (&'a str, &'a Tensor)>) -> Result<Self> {
        let mut checkpoint = Checkpoint::open(self.checkpoint.folder())?;
        for (name, value) in values {
            checkpoint.replace(name, value)?;
        }
        let cache = Arc::new(ImageCache::new(self.images.clone()));
        Ok(Self { checkpoint: Arc::new(checkpoint), cache, ..self.clone() })
    }

    /// What the user called it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Where tables that are drawn for it go.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Sizes and constants.
    pub fn config(&self) -> &JanusConfig {
        self.checkpoint.config()
    }

    /// Chat text to ids.
    pub fn prompts(&self) -> &PromptBuilder {
        &self.prompts
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &JanusTokenizer {
        self.prompts.tokenizer()
    }

    /// Pictures to tensors.
    pub fn images(&self) -> &ImageProcessor {
        &self.images
    }

    /// How pictures are drawn where nobody says otherwise, with this seed.
    pub fn drawing(&self, seed: u64) -> CodeOptions {
        let GenerationConfig { guidance_scale, temperature } = self.generation;
        CodeOptions { guidance: guidance_scale, temperature, seed }
    }

    /// What is computed of images.
    pub fn cache(&self) -> &Arc<ImageCache> {
        &self.cache
    }

    /// An image for a sample.
    pub fn image(&self, image: &EncodedImage) -> Image {
        Image::encoded(&self.cache, image.clone())
    }

    /// Ids that the tokenizer knows.
    pub fn vocabulary(&self) -> usize {
        self.tokenizer().vocabulary()
    }

    /// Weights by name that a model in `dtype` holds in bf16, as they are stored, under wider values.
    pub fn narrow_weights(&self, dtype: DType, device: &Device) -> BTreeSet<String> {
        let is_narrow = |site: &Site| held_dtype(self.checkpoint(), site, dtype, device) != dtype;
        let narrow = sites(self.config()).into_iter().filter(is_narrow);
        narrow.map(|site| format!("{}.weight", site.path)).collect()
    }

    /// Loads the parts of the model onto a device.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn model(&self, dtype: DType, device: &Device, parts: Parts, status: &dyn Status) -> Result<Janus> {
        let narrow = self.narrow_weights(dtype, device);
        let size = |name: &str| if narrow.contains(name) { DType::BF16 } else { dtype }.size_in_bytes();
        let bytes = |t: &TensorInfo| (t.shape.iter().product::<usize>() * size(&t.name)) as u64;
        let bar = status.bytes("loading weights", self.checkpoint.tensors().map(bytes).sum());
        let model = Janus::open(self.checkpoint(), dtype, device, parts, &mut |bytes| bar.advance(bytes))?;
        bar.finish();
        Ok(model)
    }

    /// The base's fingerprint: worked out now, unless it is known from an earlier time and no file has changed since.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn fingerprint(&self, status: &dyn Status) -> Result<String> {
        Ok(self.pending_fingerprint(true)?.wait(status)?.to_owned())
    }

    /// The base's fingerprint from its weights themselves, whatever is known.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn read_fingerprint(&self, status: &dyn Status) -> Result<String> {
        Ok(self.pending_fingerprint(false)?.wait(status)?.to_owned())
    }

    /// The base's fingerprint for later: if it is not known, a thread of the lowest priority works on it.
    ///
    /// # Errors
    /// A variable that does not name a cache folder.
    pub fn start_fingerprint(&self) -> Result<PendingFingerprint> {
        Ok(self.pending_fingerprint(true)?.work_beside())
    }

    fn pending_fingerprint(&self, look_up: bool) -> Result<PendingFingerprint> {
        let known = KnownFingerprints::new(cache_folder()?.join("fingerprints"));
        note_use();
        Ok(PendingFingerprint::new(self.checkpoint.clone(), known, look_up))
    }

    /// Proves that the frozen values of a model are still those of the files it was loaded from, by reading these again.
    ///
    /// # Errors
    /// [`BaseError::Changed`], [`BaseError::Rewritten`], or a file that cannot be read any more.
    pub fn verify(&self, model: &Janus, status: &dyn Status) -> Result<()> {
        let bytes = |parameter: &Parameter| parameter.frozen().bytes() as u64;
        let bar = status.bytes("comparing the base", model.parameters().iter().map(|p| bytes(p)).sum());
        for parameter in model.parameters().iter() {
            let matches = self.checkpoint.matches(parameter.name(), &parameter.frozen().values());
            if !matches!(matches, Ok(true))
                && let Some(file) = self.checkpoint.rewritten_file()
            {
                return Err(BaseError::Rewritten { file: file.to_path_buf() }.into());
            }
            if !matches? {
                return Err(BaseError::Changed { name: parameter.name().to_string() }.into());
            }
            bar.advance(bytes(parameter));
        }
        bar.finish();
        Ok(())
    }
}

/// The folder of what a user calls a base, as [`Base::open`] says: downloaded, drawn or written out where it is not there yet.
///
/// # Errors
/// Nothing of that name, or a folder that cannot be made.
pub fn resolve(spec: &str, status: &dyn Status) -> Result<PathBuf> {
    if spec == builtin::NAME {
        let cache = cache_folder()?;
        let make = || builtin::folder(&cache).map_err(|error| BaseError::in_cache(cache.clone(), error));
        let mut folder = make()?;
        // Given up by another process at this moment, it is written again.
        if !hold(&folder.join("config.json")) {
            folder = make()?;
            hold(&folder.join("config.json"));
        }
        Ok(folder)
    } else if spec.starts_with(INIT_PREFIX) {
        let cache = cache_folder()?;
        random::folder(spec, &cache, status).map_err(|error| BaseError::in_cache(cache, error))
    } else {
        let progress = status.download();
        let folder = from_hub(spec, &|| hub::resolve_base(spec, progress.as_ref() as &dyn Progress))?;
        if !Path::new(spec).exists() {
            hold(&folder.join("config.json"));
            make_room(&CacheSettings::from_environment()?, 0);
        }
        Ok(folder)
    }
}

/// What `find` finds of a base that is a folder or on a hub, with advice where its name is nearly another one's.
fn from_hub<T>(spec: &str, find: &dyn Fn() -> Result<T, HubError>) -> Result<T> {
    if !Path::new(spec).exists()
        && let Some(meant) = published::misspelt(spec)
    {
        return Err(BaseError::Misspelt { spec: spec.to_owned(), meant }.into());
    }
    find().map_err(|error| {
        let is_absent = matches!(
            error,
            HubError::NoRepository { .. }
                | HubError::Denied { .. }
                | HubError::Offline { .. }
                | HubError::NoSuchFolder { .. }
                | HubError::NotABase { .. }
        );
        match published::meant(spec).filter(|meant| is_absent && meant != spec) {
            Some(meant) => BaseError::NotFound { error: Box::new(error), meant }.into(),
            None => error.into(),
        }
    })
}

/// The first digits of a hash of these bytes.
fn short_hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).take(HASH_DIGITS / 2).collect()
}

/// Where things made on the spot are kept: `JANUS_CACHE`, else the system's cache folder for `janus`. Both variables may begin
/// with `~` or `$HOME`.
///
/// # Errors
/// A variable that begins with a home folder that is not known, neither a variable nor a home folder, or a folder of another user
/// that `JANUS_CACHE` does not name.
pub fn cache_folder() -> Result<PathBuf, CacheError> {
    let variable = |name: &'static str| {
        let value = std::env::var_os(name).filter(|value| !value.is_empty());
        let path = value.map(|value| home::expand(Path::new(&value))).transpose();
        path.map_err(|source| CacheError::Folder { variable: name, source })
    };
    if let Some(folder) = variable("JANUS_CACHE")? {
        return Ok(folder);
    }
    let folder = match variable("XDG_CACHE_HOME")? {
        Some(folder) => folder.join("janus"),
        None => cache_of(std::env::home_dir())?,
    };
    // Who names a cache knows whose it is; nobody else is believed unasked.
    match other_owner(&folder) {
        None => Ok(folder),
        Some(owner) => Err(CacheError::Foreign { folder, owner }),
    }
}

/// The cache in a home folder. Without one there is none: a folder that all users share would be filled by any of them.
fn cache_of(home: Option<PathBuf>) -> Result<PathBuf, CacheError> {
    let home = home.filter(|home| home.is_absolute());
    home.map(|home| home.join(".cache").join("janus")).ok_or(CacheError::NoHome)
}

#[cfg(test)]
mod tests {
    use janus_core::checkpoint::init_checkpoint;
    use janus_core::config::Layout;

    use super::*;
    use crate::error::Error;
    use crate::status::Silent;

    fn tiny(folder: &Path, stored: DType) -> Base {
        let config = JanusConfig::shape("janus-tiny").unwrap();
        init_checkpoint(&config, 5, stored, folder, Layout::Native, &mut |_, _| ()).unwrap();
        Base::open_folder("tiny", folder).unwrap()
    }

    fn refusal(base: &Base, model: &Janus) -> BaseError {
        match base.verify(model, &Silent) {
            Err(Error::Base(error)) => error,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn nothing_is_kept_where_all_users_are() {
        assert_eq!(cache_of(Some("/home/some".into())).unwrap(), Path::new("/home/some/.cache/janus"));
        for none in [None, Some(PathBuf::new()), Some("home".into())] {
            assert!(matches!(cache_of(none), Err(CacheError::NoHome)));
        }
    }

    #[test]
    fn a_frozen_value_that_changed_is_found_by_name() {
        for (stored, computed) in [(DType::BF16, DType::BF16), (DType::F32, DType::BF16), (DType::BF16, DType::F32)] {
            let folder = tempfile::tempdir().unwrap();
            let base = tiny(folder.path(), stored);
            let open = || base.model(computed, &Device::Cpu, Parts::all(), &Silent).unwrap();
            base.verify(&open(), &Silent).unwrap();
            for name in ["lm_head.weight", "model.vqmodel.quantize.embedding.weight"] {
                let model = open();
                let frozen = model.parameters().get(name).unwrap().frozen().values();
                let (rows, columns) = frozen.dims2().unwrap();
                let last = frozen.narrow(0, rows - 1, 1).unwrap();
                let moved = (last.to_dtype(DType::F32).unwrap() + 1.0).unwrap().to_dtype(frozen.dtype()).unwrap();
                assert_eq!(moved.dims(), [1, columns]);
                frozen.slice_set(&moved, 0, rows - 1).unwrap();
                let error = refusal(&base, &model);
                assert!(matches!(&error, BaseError::Changed { name: found } if found == name), "{error}");
                assert_eq!(error.fault(), Fault::Internal);
            }
        }
    }

    #[test]
    fn a_file_overwritten_in_a_run_is_told_from_a_value_that_changed() {
        let folder = tempfile::tempdir().unwrap();
        let base = tiny(folder.path(), DType::BF16);
        let model = base.model(DType::BF16, &Device::Cpu, Parts::all(), &Silent).unwrap();
        let path = folder.path().join("model.safetensors");
        let bytes = fs_err::read(&path).unwrap();

        // Renamed into place, the new weights leave the open file as it was.
        fs_err::write(folder.path().join("new"), &bytes[..bytes.len() / 2]).unwrap();
        fs_err::rename(folder.path().join("new"), &path).unwrap();
        #[cfg(unix)]
        base.verify(&model, &Silent).unwrap();

        fs_err::write(&path, &bytes).unwrap();
        let base = Base::open_folder("tiny", folder.path()).unwrap();
        base.verify(&model, &Silent).unwrap();
        let file = fs_err::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(bytes.len() as u64 / 2).unwrap();
        let error = refusal(&base, &model);
        assert!(matches!(&error, BaseError::Rewritten { file } if *file == path), "{error}");
        assert_eq!(error.fault(), Fault::Input);
        assert!(!error.hints().is_empty());
    }
}
