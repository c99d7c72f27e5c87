/// Hears how a download goes. One file is transferred at a time.
pub trait Progress {
    /// A file begins: `already_bytes` of its `total_bytes` are on the disk. Told again for the same file when its
    /// transfer has to start over.
    fn file(&self, name: &str, total_bytes: Option<u64>, already_bytes: u64);

    /// That many more bytes of the file were written.
    fn advance(&self, bytes: u64);

    /// The file is done, or given up: the error then follows from the function called.
    fn finish(&self);

    /// Something the user should know that is no error, one sentence without a full stop.
    fn note(&self, message: &str) {
        let _ = message;
    }
}

/// A [`Progress`] that keeps everything to itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn file(&self, _name: &str, _total_bytes: Option<u64>, _already_bytes: u64) {}

    fn advance(&self, _bytes: u64) {}

    fn finish(&self) {}
}
