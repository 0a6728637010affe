//! Checking and hashing passwords without letting anyone know or flood anything.
//!
//! Either takes a quarter of a second of a core. Only half of the cores check at any time, and one hashes, so that a flood
//! of either slows its own and not traffic; who waits too long is told to come back. An unknown user costs the same time as a known
//! one.
//!
//! What makes a password good enough, and a stored hash too weak to keep, is told here too.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread::available_parallelism,
    time::Duration,
};

use tokio::sync::Semaphore;

use crate::store::{Password, documents::BCRYPT_COST};

/// Callers that may wait for their turn.
const QUEUE: usize = 1_024;
/// Longest wait for a turn.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Is this password hard enough to guess (reference: configuration 3)?
pub fn is_strong(password: &str) -> bool {
    const SPECIAL: &str = "!@#$%^&*()-_=+[]{};:,.<>?/";
    let has = |wanted: fn(char) -> bool| password.chars().any(wanted);
    password.chars().count() >= 16
        && has(char::is_uppercase)
        && has(char::is_lowercase)
        && has(|c| c.is_ascii_digit())
        && has(|c| SPECIAL.contains(c))
}

/// Too much work on passwords and other secrets at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many sign-ins or changes of passwords at once")]
pub struct Busy;

/// Checks and hashes passwords, a few at a time.
pub struct Passwords {
    checks: Lane,
    /// What signed-in users have done, however much of it, is in no sign-in's way.
    others: Lane,
    /// Stands for the password of unknown users; matches nothing.
    nobody: Password,
}

/// Some at a time, the others in line.
struct Lane {
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Lane {
    fn new(turns: usize) -> Self {
        Self { turns: Arc::new(Semaphore::new(turns)), waiting: AtomicUsize::new(0) }
    }

    async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Busy> {
        let place = Place(&self.waiting);
        if self.waiting.fetch_add(1, Relaxed) >= QUEUE {
            return Err(Busy);
        }
        let turn = tokio::time::timeout(LONGEST_WAIT, Arc::clone(&self.turns).acquire_owned());
        let Ok(Ok(turn)) = turn.await else { return Err(Busy) };
        drop(place);
        let done = tokio::task::spawn_blocking(move || {
            // The turn ends with the work, not with the caller's interest in it.
            let _turn = turn;
            work()
        });
        done.await.map_err(|_| Busy)
    }
}

/// Was it hashed with less work than is due today? Right after it proved right is the time to hash it again.
///
/// May take a quarter of a second when the hash was never needed before: not for an async context.
pub fn needs_upgrade(stored: &Password) -> bool {
    parts(stored.hash()).is_some_and(|parts| parts.get_cost() < BCRYPT_COST)
}

/// A bcrypt hash of a kind whose meaning is sure: `$2x$` marks hashes that a faulty program made.
fn parts(hash: &[u8]) -> Option<bcrypt::HashParts> {
    std::str::from_utf8(hash).ok().filter(|hash| !hash.starts_with("$2x$"))?.parse().ok()
}

fn matches(given: &str, hash: &[u8]) -> bool {
    let text = std::str::from_utf8(hash).ok().filter(|_| parts(hash).is_some());
    text.is_some_and(|hash| bcrypt::verify(given, hash).unwrap_or(false))
}

/// A place in the queue.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Default for Passwords {
    fn default() -> Self {
        Self::with_turns(available_parallelism().map_or(1, |cores| cores.get().div_ceil(2)))
    }
}

impl Passwords {
    fn with_turns(turns: usize) -> Self {
        // No text has this hash: it is the work factor, a salt and zeroes.
        let nobody = format!("$2b${BCRYPT_COST:02}$N9qo8uLOickgx2ZMRZoMye{}", ".".repeat(31));
        Self { checks: Lane::new(turns), others: Lane::new(1), nobody: Password::from_hash(nobody.as_bytes()) }
    }

    /// Is this the password? `None` stands for that of a user who doesn't exist or has none: always wrong.
    pub async fn verify(&self, given: String, stored: Option<&Password>) -> Result<bool, Busy> {
        let password = stored.unwrap_or(&self.nobody).clone();
        Ok(self.checks.work(move || matches(&given, password.hash())).await? && stored.is_some())
    }

    /// The hash of a password.
    pub async fn hash(&self, given: String) -> Result<Vec<u8>, Busy> {
        self.in_turn(move || Password::from_text(&given).hash().to_vec()).await
    }

    /// Does work that takes as long as with a password, when it is its turn.
    pub async fn in_turn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Busy> {
        self.others.work(work).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use futures::future::join_all;

    use super::*;

    #[test]
    fn a_strong_password_is_long_and_of_four_kinds() {
        assert!(is_strong("Correct-Horse-9-Battery"));
        for weak in [
            "Correct-Horse-9",
            "correct-horse-9-battery",
            "CORRECT-HORSE-9-BATTERY",
            "Correct-Horse-X-Battery",
            "CorrectHorse9Battery",
            "",
        ] {
            assert!(!is_strong(weak), "{weak}");
        }
    }

    #[tokio::test]
    async fn only_the_right_password_is_right() {
        let (passwords, stored) = (Passwords::default(), Password::from_text("correct horse"));
        assert!(passwords.verify("correct horse".into(), Some(&stored)).await.unwrap());
        assert!(!passwords.verify("Correct horse".into(), Some(&stored)).await.unwrap());
        assert!(!passwords.verify(String::new(), Some(&stored)).await.unwrap());
        assert!(!passwords.verify(String::new(), None).await.unwrap());
        assert!(!passwords.verify("x".into(), Some(&Password::from_hash(b"not a hash"))).await.unwrap());
    }

    #[tokio::test]
    async fn hashes_of_existing_databases_are_understood() {
        // As another implementation wrote them: "U*U" of the bcrypt test vectors, in both usual prefixes.
        for hash in [
            "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
            "$2b$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
            "$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
        ] {
            let stored = Password::from_hash(hash.as_bytes());
            assert!(Passwords::default().verify("U*U".into(), Some(&stored)).await.unwrap(), "{hash}");
        }
        let faulty = Password::from_hash(b"$2x$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW");
        assert!(!Passwords::default().verify("U*U".into(), Some(&faulty)).await.unwrap());
    }

    #[test]
    fn a_hash_of_less_work_than_ours_is_due_for_another() {
        for (hash, is_due) in [
            (format!("$2b${:02}$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", BCRYPT_COST - 1), true),
            (format!("$2b${BCRYPT_COST:02}$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"), false),
            ("$2a$31$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW".to_owned(), false),
            ("not a hash".to_owned(), false),
        ] {
            assert_eq!(needs_upgrade(&Password::from_hash(hash.as_bytes())), is_due, "{hash}");
        }
        assert!(!needs_upgrade(&Password::from_text("fresh")));
    }

    #[tokio::test]
    async fn text_after_the_72nd_byte_does_not_count() {
        // So it is with bcrypt everywhere; existing hashes of long passwords must keep working.
        let stored = Password::from_text(&"x".repeat(72));
        assert!(Passwords::default().verify("x".repeat(80), Some(&stored)).await.unwrap());
    }

    #[test]
    fn the_password_of_nobody_costs_what_others_cost() {
        let passwords = Passwords::default();
        let hash: bcrypt::HashParts = std::str::from_utf8(passwords.nobody.hash()).unwrap().parse().unwrap();
        assert_eq!(hash.get_cost(), BCRYPT_COST);
        assert!(bcrypt::verify("x", std::str::from_utf8(passwords.nobody.hash()).unwrap()).is_ok());
    }

    #[tokio::test]
    async fn a_flood_of_sign_ins_leaves_threads_for_others() {
        let passwords = Passwords::with_turns(1);
        let slow = Password::from_hash(&bcrypt::hash_bytes("x", 10).unwrap());
        let flood = join_all((0..6).map(|_| passwords.verify("x".into(), Some(&slow))));
        let other = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let asked = Instant::now();
            tokio::task::spawn_blocking(|| ()).await.unwrap();
            assert_eq!(passwords.checks.turns.available_permits(), 0, "the flood is still on");
            asked.elapsed()
        };
        let (answers, delay) = futures::join!(flood, other);
        assert!(answers.into_iter().all(|answer| answer == Ok(true)));
        assert!(delay < Duration::from_millis(200), "{delay:?}");
        assert_eq!(passwords.checks.waiting.load(Relaxed), 0);
    }

    #[tokio::test]
    async fn who_finds_the_queue_full_is_told_so() {
        let passwords = Passwords::with_turns(1);
        passwords.checks.waiting.store(QUEUE, Relaxed);
        assert_eq!(passwords.verify("x".into(), None).await, Err(Busy));
        assert_eq!(passwords.checks.waiting.load(Relaxed), QUEUE);
        assert_eq!(passwords.in_turn(|| 1).await, Ok(1), "what else there is to do has a line of its own");
    }
}
