//! Token keys in a folder, one a file, as a mounted Secret has them; followed while the gateway runs.
//!
//! In: a folder. Out: a [`KeyRing`] at each change. A file's name is the `kid`, its content a secret or an RSA key in
//! PEM; the file `active` names the key that signs, without it the last by name does. What always holds: a key counts
//! as long as its file is there and no longer, even when the file can't be read for a moment; a folder that holds no
//! usable key at all changes nothing; no content is ever part of a message.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use notify::RecursiveMode;

use super::keys::{KeyError, KeyRing, LEGACY};
use crate::{
    crypt::{SHORTEST_SECRET, TokenKey},
    folder::Watch,
};

/// Names the key that signs.
const ACTIVE: &str = "active";
/// Other names of the one key of earlier versions.
const LEGACY_FILES: [&str; 2] = ["JWT_SECRET_KEY", "jwt-secret-key"];
/// No key is near this long.
const LONGEST_FILE: u64 = 65_536;

/// A folder of keys, and what it held last.
pub(super) struct KeyFolder {
    path: PathBuf,
    /// Are secrets that can be guessed refused?
    is_strict: bool,
    keys: BTreeMap<String, (Vec<u8>, Arc<TokenKey>)>,
    signs: Option<String>,
    /// What was said last, so that a lasting problem is one line.
    problems: Vec<String>,
}

impl KeyFolder {
    /// Reads a folder for the first time; it must hold a usable key.
    pub(super) fn open(path: &Path, is_strict: bool) -> Result<(Self, KeyRing), KeyError> {
        let (keys, signs, problems) = (BTreeMap::new(), None, Vec::new());
        let mut folder = Self { path: path.to_owned(), is_strict, keys, signs, problems };
        let ring = folder.read().and_then(|ring| ring.ok_or_else(|| "holds no usable key".to_owned()));
        match ring {
            Ok(ring) => Ok((folder, ring)),
            Err(mut reason) => {
                folder.problems.iter().for_each(|problem| reason = format!("{reason}; {problem}"));
                Err(KeyError::Folder { path: folder.path, reason })
            }
        }
    }

    /// The ring, when it is another than before.
    fn read(&mut self) -> Result<Option<KeyRing>, String> {
        let names = names(&self.path).map_err(|error| format!("can't be read: {error}"))?;
        let (mut keys, mut problems, mut active) = (BTreeMap::new(), Vec::new(), None);
        for name in names {
            if name == ACTIVE {
                let read = content(&self.path.join(&name)).ok().and_then(|text| String::from_utf8(text).ok());
                active = Some(read.unwrap_or_default().trim().to_owned());
                continue;
            }
            let kid = if LEGACY_FILES.contains(&name.as_str()) { LEGACY } else { &name };
            if is_setting(kid) {
                problems.push(format!("{name} has the name of a setting and is no key"));
                continue;
            }
            if keys.contains_key(kid) {
                problems.push(format!("{name} is left out: another file is {kid} too"));
                continue;
            }
            match self.key(kid, &self.path.join(&name)) {
                Ok(key) => drop(keys.insert(kid.to_owned(), key)),
                Err(why) => match self.keys.get(kid) {
                    Some(before) => {
                        problems.push(format!("{name} {why}; the key it held stays"));
                        keys.insert(kid.to_owned(), before.clone());
                    }
                    None => problems.push(format!("{name} {why}")),
                },
            }
        }
        let signs = signer(&keys, active, &mut problems);
        if problems != self.problems {
            for problem in &problems {
                tracing::warn!(folder = %self.path.display(), "token keys: {problem}");
            }
            self.problems = problems;
        }
        if keys.is_empty() {
            return Err("holds no usable key".to_owned());
        }
        let contents = |(kid, (content, _)): (&String, &(Vec<u8>, _))| (kid.clone(), content.clone());
        let is_same = keys.iter().map(contents).eq(self.keys.iter().map(contents)) && signs == self.signs;
        (self.keys, self.signs) = (keys, signs);
        let ring = |(kid, (_, key)): (&String, &(Vec<u8>, Arc<TokenKey>))| (kid.clone(), Arc::clone(key));
        Ok((!is_same).then(|| KeyRing::of(self.keys.iter().map(ring).collect(), self.signs.clone())))
    }

    fn key(&self, kid: &str, path: &Path) -> Result<(Vec<u8>, Arc<TokenKey>), String> {
        let content = content(path).map_err(|error| format!("can't be read: {error}"))?;
        if let Some((_, key)) = self.keys.get(kid).filter(|(before, _)| *before == content) {
            let key = Arc::clone(key);
            return Ok((content, key));
        }
        let key = TokenKey::from_file(&content).map_err(|error| error.to_string())?;
        if key.is_weak() && self.is_strict {
            return Err(format!("is shorter than {SHORTEST_SECRET} characters in production"));
        }
        Ok((content, Arc::new(key)))
    }

    /// Follows the folder until it is dropped.
    pub(super) async fn follow(mut self, replace: impl Fn(KeyRing)) {
        let mut folder = Watch::new(&self.path, RecursiveMode::NonRecursive, "the token keys");
        let mut complaint = None;
        loop {
            // The first look is at once: a change since the start sent no notice.
            let outcome = self.read();
            match outcome {
                Ok(Some(ring)) => {
                    tracing::info!(kids = ring.kids().join(" "), signs = ring.signs(), "the token keys have changed");
                    replace(ring);
                    complaint = None;
                }
                Ok(None) => complaint = None,
                Err(reason) if complaint.as_ref() != Some(&reason) => {
                    tracing::error!(folder = %self.path.display(), "{reason}; the token keys in use stay");
                    complaint = Some(reason);
                }
                Err(_) => {}
            }
            folder.changed().await;
        }
    }
}

/// The key that signs: the named one, else the last by name that can.
fn signer(
    keys: &BTreeMap<String, (Vec<u8>, Arc<TokenKey>)>,
    active: Option<String>,
    problems: &mut Vec<String>,
) -> Option<String> {
    if let Some(active) = active {
        let active = if LEGACY_FILES.contains(&active.as_str()) { LEGACY.to_owned() } else { active };
        match keys.get(&active) {
            Some((_, key)) if key.can_sign() => return Some(active),
            Some(_) => problems.push(format!("{ACTIVE} names {active:?}, which only verifies; the last key signs")),
            None => problems.push(format!("{ACTIVE} names no key that is there; the last key signs")),
        }
    }
    let last = keys.iter().rev().find(|(_, (_, key))| key.can_sign()).map(|(kid, _)| kid.clone());
    if last.is_none() && !keys.is_empty() {
        problems.push("no key can sign: nobody can sign in".to_owned());
    }
    last
}

/// A Secret may hold more than token keys; what is named as settings are is none.
fn is_setting(name: &str) -> bool {
    name.contains('_') && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}

/// Files of a folder by name; the links of mounted volumes and editors' files begin with a dot.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().into_string().unwrap_or_default();
        if !name.is_empty() && !name.starts_with('.') && !entry.path().is_dir() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn content(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(LONGEST_FILE + 1).read_to_end(&mut content)?;
    if content.len() as u64 > LONGEST_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "too large for a key"));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;
    use crate::crypt::rsa_pems;

    const OLD: &str = "0123456789abcdef0123456789abcdef";
    const NEW: &str = "fedcba9876543210fedcba9876543210\n";

    fn folder(files: &[(&str, &str)]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    #[track_caller]
    fn ring(files: &[(&str, &str)]) -> KeyRing {
        let folder = folder(files);
        KeyFolder::open(folder.path(), false).unwrap_or_else(|error| panic!("{error}")).1
    }

    #[test]
    fn each_file_is_a_key_and_one_signs() {
        let (private, public) = rsa_pems();
        for (files, kids, signs) in [
            (&[("JWT_SECRET_KEY", OLD)][..], &["legacy-key"][..], Some("legacy-key")),
            (&[("jwt-secret-key", OLD)], &["legacy-key"], Some("legacy-key")),
            (&[("legacy-key", OLD), ("2026-11", NEW)], &["2026-11", "legacy-key"], Some("legacy-key")),
            (&[("JWT_SECRET_KEY", OLD), ("new", NEW)], &["legacy-key", "new"], Some("new")),
            (&[("a", OLD), ("b", NEW), ("active", "a\n")], &["a", "b"], Some("a")),
            (
                &[("JWT_SECRET_KEY", OLD), ("new", NEW), ("active", "JWT_SECRET_KEY")],
                &["legacy-key", "new"],
                Some("legacy-key"),
            ),
            (&[("a", OLD), ("b", NEW), ("active", "gone")], &["a", "b"], Some("b")),
            (&[("a", &private), ("b", &public)], &["a", "b"], Some("a")),
            (&[("b", &public), ("active", "b")], &["b"], None),
            (&[("a", OLD), ("TOKEN_ENCRYPTION_KEY", NEW), (".hidden", NEW), ("b", "")], &["a"], Some("a")),
            (&[("JWT_SECRET_KEY", OLD), ("jwt-secret-key", NEW)], &["legacy-key"], Some("legacy-key")),
        ] {
            let ring = ring(files);
            assert_eq!((ring.kids(), ring.signs()), (kids.to_vec(), signs), "{files:?}");
        }
    }

    #[test]
    fn a_folder_without_a_usable_key_is_refused_with_the_reasons() {
        let refused = |folder: &Path, is_strict| match KeyFolder::open(folder, is_strict) {
            Err(error) => error.to_string(),
            Ok((_, ring)) => panic!("{ring:?}"),
        };
        let weak =
            folder(&[("a", "Sup3rSecret"), ("b", "-----BEGIN PUBLIC KEY-----\nSup3rSecret\n-----END PUBLIC KEY-----")]);
        let text = refused(weak.path(), true);
        for part in ["DOORMAN_JWT_KEYS_DIR", "holds no usable key", "a is shorter than 32", "b is not an RSA key"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("Sup3rSecret"), "{text}");
        assert!(KeyFolder::open(weak.path(), false).is_ok(), "short secrets do outside of production");
        assert!(refused(folder(&[]).path(), false).contains("holds no usable key"));
        assert!(refused(Path::new("/nowhere"), false).contains("can't be read"));
        let huge = folder(&[("a", &"x".repeat(70_000))]);
        assert!(refused(huge.path(), false).contains("too large"));
    }

    #[test]
    fn a_removed_key_is_gone_and_an_unreadable_one_stays() {
        let folder = folder(&[("a", OLD), ("b", NEW)]);
        let file = |name: &str| folder.path().join(name);
        let (mut keys, _) = KeyFolder::open(folder.path(), true).unwrap();
        assert!(keys.read().unwrap().is_none(), "nothing has changed");

        fs::write(file("b"), "").unwrap();
        assert!(keys.read().unwrap().is_none(), "half-written: what it held stays");
        fs::remove_file(file("b")).unwrap();
        assert_eq!(keys.read().unwrap().unwrap().kids(), ["a"]);
        fs::write(file("a"), NEW).unwrap();
        let replaced = keys.read().unwrap().unwrap();
        assert_eq!((replaced.kids(), replaced.signs()), (vec!["a"], Some("a")));

        fs::remove_file(file("a")).unwrap();
        assert!(keys.read().is_err(), "an empty folder changes nothing");
        fs::remove_dir(folder.path()).unwrap();
        assert!(keys.read().is_err());
        fs::create_dir(folder.path()).unwrap();
        fs::write(file("a"), NEW).unwrap();
        assert!(keys.read().unwrap().is_none(), "it is what it was");
    }

    #[tokio::test]
    async fn a_mounted_secret_is_followed() {
        // As a kubelet writes it: files are links through `..data`, which is replaced by a rename.
        let folder = tempfile::tempdir().unwrap();
        let publish = |generation: &str, files: &[(&str, &str)]| {
            let target = folder.path().join(generation);
            fs::create_dir(&target).unwrap();
            for (name, content) in files {
                fs::write(target.join(name), content).unwrap();
            }
            symlink(generation, folder.path().join("..data_tmp")).unwrap();
            fs::rename(folder.path().join("..data_tmp"), folder.path().join("..data")).unwrap();
            for (name, _) in files.iter().filter(|(name, _)| !folder.path().join(name).is_symlink()) {
                symlink(format!("..data/{name}"), folder.path().join(name)).unwrap();
            }
            for name in fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()) {
                if name.is_symlink() && !name.exists() {
                    fs::remove_file(name).unwrap();
                }
            }
        };
        publish("..1", &[("JWT_SECRET_KEY", OLD)]);
        let (keys, _) = KeyFolder::open(folder.path(), true).unwrap();
        let (send, mut rings) = tokio::sync::mpsc::unbounded_channel();
        let following = tokio::spawn(keys.follow(move |ring| {
            let kids: Vec<_> = ring.kids().into_iter().map(str::to_owned).collect();
            send.send((kids, ring.signs().unwrap().to_owned())).unwrap();
        }));
        let mut comes_to = async |kids: &[&str], signs: &str| {
            let wait = async {
                while rings.recv().await.unwrap() != (kids.iter().map(ToString::to_string).collect(), signs.to_owned())
                {
                }
            };
            tokio::time::timeout(Duration::from_secs(20), wait)
                .await
                .unwrap_or_else(|_| panic!("never {kids:?} {signs}"));
        };
        publish("..2", &[("JWT_SECRET_KEY", OLD), ("2026", NEW), ("active", "legacy-key")]);
        comes_to(&["2026", "legacy-key"], "legacy-key").await;
        publish("..3", &[("JWT_SECRET_KEY", OLD), ("2026", NEW), ("active", "2026")]);
        comes_to(&["2026", "legacy-key"], "2026").await;
        publish("..4", &[("2026", NEW), ("active", "2026")]);
        comes_to(&["2026"], "2026").await;
        following.abort();
    }
}
