//! Where the server of MongoDB's wire protocol is that tests use.

use std::env;
use std::fs;
use std::path::PathBuf;

/// `DOORMAN_TEST_MONGO`, else what `tests/cluster/mongo-wire/build` made last.
pub fn program() -> Option<PathBuf> {
    env::var_os("DOORMAN_TEST_MONGO").map(PathBuf::from).or_else(built)
}

fn built() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    let built = fs::read_dir(cache.join("doorman-cluster")).ok()?.flatten().map(|entry| entry.path());
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("mongo-wire-") && !name.contains('.')
    };
    built.filter(is_ours).max_by_key(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok())
}
