use std::time::Instant;

use base64::{Engine, prelude::BASE64_STANDARD};
use mongodb::bson::{Binary, doc, spec::BinarySubtype};
use tempfile::TempDir;

use super::*;
use crate::settings::Source;

/// What another implementation of the format (Python's `cryptography` and `json`) wrote with [`THEIR_KEY`].
const THEIRS: &[&str] = &[
    "RE1QMQABAgMEBQYHCAkKCwwNDg9kZWZnaGlqa2xtbm+e45XXZSzMrYo11SNCXhzCKz122QiIQ67yk/7/H6/2L4VrwET1n9zNomJb/vQhYD5nFa",
    "Avk28rL5X+WmY/cqHE8qLqm1HLK6asg6+pT7hkDc67QjLjOyiqZVJL5AgdCGcZ5HfBEc55D2YP464CrMYIWMEtpzf5V75/KPN/3W0iozclA4yC",
    "ThrfL0qWhgHUm0FICELQ4rl7R2xKNfl97qzw+yfRg8A7d3swORAwFvNXQCg4Yq2HCkoXpRpMaEwDAcgDLukswzttuUAORNxQiURXVy0WplyYIQ",
    "9X3x+qK27uG/fH4E+XcB7ddDSwDOSpJPjGgbqTW1FX8vksdp0wNrWuSYxLbBp1DHAaEYeRaCDBTiK2SNZiREToFoLCG1yFvAMfYZ9fJPtXjGk4",
    "NpDzT9HGqTx2UwVbC6Ko0FITAbYK+14PXpiVwtIxtC5Cm8pOhXf3n7XjUNRwPZSzyt3p1dhUpyI81N/uovkTbHws7Mk9CZazy4rTiE/fsbQ91w",
    "wwrxuoV9y26gwGFzTVmlmifd5xoRsQo21uDOlFP4OeshHzcFnazlV302ZXkm0kCHjAXu8/8McuL8bBVKbk6e75+81YArQ2pUFtA3dhAxUMRR65",
    "fMje9Q/dJDSfBMU/a9SQaDDyuGgqsmCLIRasnHxV7lRyF7Hlw6b06IQBUtL43AWLZMsJSYzcmw7flLKNwmQD2ciOVoenOIvVu4Yo/XmLHHASD9",
    "QrDb3ES63Z/A4kYZD4+3pMAkMYcH4hMQzP3GklyQSfnX80+zPc/LhyRUsGeQqXWXj9UieJejvT/1cVLwJyUTfBbmvk8JWvhqvrh6kZokSbBrcX",
    "GZaGAAQF+szLb1s3jv0=",
];
const THEIR_KEY: &str = "pässword of the tests, 32 chars+";

fn dumps_with(changes: &[(&str, &str)]) -> Dumps {
    let base = [
        ("JWT_SECRET_KEY", "0123456789abcdef0123456789abcdef"),
        ("DOORMAN_ADMIN_PASSWORD", "long-enough-password"),
        ("MEM_ENCRYPTION_KEY", THEIR_KEY),
    ];
    Dumps::new(&Settings::load(Source::from_pairs(base.iter().chain(changes).copied())).unwrap().0).unwrap()
}

fn dumps() -> Dumps {
    dumps_with(&[])
}

fn state(n: i32) -> State {
    State::from([("users".to_owned(), vec![doc! { "username": "amy", "n": n }]), ("roles".to_owned(), Vec::new())])
}

fn hint(folder: &TempDir) -> PathBuf {
    folder.path().join("memory_dump.bin")
}

async fn write(dumps: &Dumps, folder: &TempDir, n: i32) -> PathBuf {
    dumps.write(hint(folder), move || state(n)).await.unwrap()
}

async fn found(dumps: &Dumps, folder: &TempDir) -> Option<State> {
    dumps.find(vec![hint(folder)]).await.unwrap().map(|restored| restored.dump.state)
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 1;
    fs::write(file, bytes).unwrap();
}

#[tokio::test]
async fn a_dump_of_another_implementation_is_read() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(hint(&folder), BASE64_STANDARD.decode(THEIRS.concat()).unwrap()).unwrap();
    let dump = dumps().read(hint(&folder)).await.unwrap();
    assert_eq!((dump.version, &*dump.created_at), (1, "2024-01-15T10:30:00.123456Z"));
    let password = Binary { subtype: BinarySubtype::Generic, bytes: b"$2b$12$abcdefghijklmnopqrstuv".to_vec() };
    let user = doc! {
        "_id": "5f0c6a3e-0000-4000-8000-000000000001", "username": "amy", "email": "amy@example.com",
        "password": password, "role": "admin", "groups": ["ALL"], "active": true, "throttle_wait_duration": 0.5,
        "bandwidth_limit_bytes": 5_000_000_000_i64, "custom_attributes": { "team": "Zürich ☃" }, "throttle_enabled": null,
    };
    let revoked = doc! { "type": "jti", "username": "amy", "jti": "x", "expires_at": 1_705_314_600 };
    let expected = State::from([
        ("users".to_owned(), vec![user]),
        ("roles".to_owned(), vec![]),
        ("revocations".to_owned(), vec![revoked]),
        ("settings".to_owned(), vec![doc! { "type": "security_settings", "raw": 1 }]),
    ]);
    assert_eq!(dump.state, expected);
}

#[tokio::test]
async fn a_dump_is_laid_out_as_the_format_says_and_shows_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (write(&dumps(), &folder, 1).await, write(&dumps(), &folder, 1).await);
    let (first, second) = (fs::read(first).unwrap(), fs::read(second).unwrap());
    assert!(first.starts_with(b"DMP1") && second.starts_with(b"DMP1"));
    assert_ne!(first[4..20], second[4..20], "each dump has its own salt");
    assert_ne!(first[20..32], second[20..32], "each dump has its own nonce");
    assert!(!first.windows(3).any(|window| window == b"amy"));
    let at = "2024-01-15T10:30:00.123456Z".parse().unwrap();
    let mut sealed = format::seal(&state(1), at, &dumps().0.secret).unwrap();
    assert_eq!(
        String::from_utf8_lossy(format::unseal(&mut sealed, &dumps().0.secret).unwrap()),
        format!(
            r#"{{"version":1,"created_at":"2024-01-15T10:30:00.123456Z","sanitized":false,"note":"{}","data":{}}}"#,
            format::NOTE,
            r#"{"roles":[],"users":[{"username":"amy","n":1}]}"#
        )
    );
}

#[tokio::test]
async fn what_was_dumped_is_found_again() {
    let folder = tempfile::tempdir().unwrap();
    assert!(found(&dumps(), &folder).await.is_none());
    write(&dumps(), &folder, 1).await;
    write(&dumps(), &folder, 2).await;
    assert_eq!(found(&dumps(), &folder).await, Some(state(2)));
}

#[tokio::test]
async fn the_exact_name_comes_first_and_only_once() {
    let folder = tempfile::tempdir().unwrap();
    let old = write(&dumps(), &folder, 1).await;
    write(&dumps(), &folder, 2).await;
    fs::rename(old, hint(&folder)).unwrap();
    assert_eq!(found(&dumps(), &folder).await, Some(state(1)));
    assert_eq!(found(&dumps(), &folder).await, Some(state(1)), "the chosen state is the newest now");
    write(&dumps(), &folder, 3).await;
    assert_eq!(found(&dumps(), &folder).await, Some(state(3)));
}

#[tokio::test]
async fn the_newest_of_two_places_is_found() {
    let (before, now) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hints = || vec![hint(&now), hint(&before)];
    write(&dumps(), &before, 1).await;
    assert_eq!(dumps().find(hints()).await.unwrap().unwrap().dump.state, state(1));
    fs::rename(write(&dumps(), &now, 2).await, now.path().join("memory_dump-29990101T000000Z.bin")).unwrap();
    assert_eq!(dumps().find(hints()).await.unwrap().unwrap().dump.state, state(2));
}

#[tokio::test]
async fn a_damaged_dump_refuses_the_start_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    write(&dumps(), &folder, 1).await;
    let file = write(&dumps(), &folder, 2).await;
    let whole = fs::read(&file).unwrap();
    for damage in [0, 4, 20, 32, whole.len() - 1] {
        fs::write(&file, &whole).unwrap();
        flip(&file, damage);
        let refused = dumps().find(vec![hint(&folder)]).await.unwrap_err().to_string();
        assert!(refused.contains(file.to_str().unwrap()), "{refused}");
        assert!(refused.contains("MEM_ENCRYPTION_KEY") && refused.contains("DOORMAN_IGNORE_BAD_DUMP"), "{refused}");
    }
    for length in [0, 3, 32, whole.len() - 1] {
        fs::write(&file, &whole[..length]).unwrap();
        assert!(dumps().find(vec![hint(&folder)]).await.is_err(), "{length} bytes of it");
        assert_eq!(fs::read(&file).unwrap().len(), length);
    }
}

#[tokio::test]
async fn a_dump_of_another_key_refuses_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(&dumps(), &folder, 1).await;
    let other = dumps_with(&[("MEM_ENCRYPTION_KEY", "another key of thirty-two letters")]);
    let refused = other.find(vec![hint(&folder)]).await.unwrap_err().to_string();
    assert!(refused.contains("another MEM_ENCRYPTION_KEY"), "{refused}");
    assert_eq!(dumps().read(file).await.unwrap().state, state(1));
}

#[tokio::test]
async fn a_bad_dump_is_passed_over_when_that_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let lenient = dumps_with(&[("DOORMAN_IGNORE_BAD_DUMP", "true")]);
    let good = write(&lenient, &folder, 1).await;
    let bad = write(&lenient, &folder, 2).await;
    flip(&bad, 40);
    fs::write(hint(&folder), "no dump").unwrap();
    assert_eq!(found(&lenient, &folder).await, Some(state(1)));
    flip(&good, 40);
    assert!(found(&lenient, &folder).await.is_none());
    assert!(bad.exists() && good.exists() && hint(&folder).exists(), "what is bad is kept");
}

#[tokio::test]
async fn so_many_are_kept_as_the_setting_says() {
    let folder = tempfile::tempdir().unwrap();
    let dumps = dumps_with(&[("MEM_DUMP_KEEP", "2")]);
    for n in 1..=4 {
        write(&dumps, &folder, n).await;
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    assert_eq!(found(&dumps, &folder).await, Some(state(4)));
    dumps.write_and_keep_all(hint(&folder), || state(5)).await.unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_dumps_at_the_same_time_the_last_one_has_the_last_state() {
    use std::sync::atomic::{AtomicI32, Ordering};
    let folder = tempfile::tempdir().unwrap();
    let (dumps, taken) = (dumps_with(&[("MEM_DUMP_KEEP", "100")]), Arc::new(AtomicI32::new(0)));
    let at_once = (0..20).map(|_| {
        let (dumps, taken, hint) = (dumps.clone(), taken.clone(), hint(&folder));
        tokio::spawn(async move { dumps.write(hint, move || state(taken.fetch_add(1, Ordering::SeqCst))).await })
    });
    for task in at_once.collect::<Vec<_>>() {
        task.await.unwrap().unwrap();
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 20);
    assert_eq!(found(&dumps, &folder).await, Some(state(19)));
}

#[tokio::test]
async fn a_large_dump_leaves_the_async_threads_free() {
    let folder = tempfile::tempdir().unwrap();
    let user = |n: i32| doc! { "username": format!("user-{n}"), "email": "a@b.c", "groups": ["ALL"], "n": n };
    let large = State::from([("users".to_owned(), (0..100_000).map(user).collect())]);
    let (expected, dumps, hint) = (large.clone(), dumps(), hint(&folder));
    let started = Instant::now();
    // One thread: a dump that ran on it would let no other task get on before it ends.
    let mut writing = std::pin::pin!(dumps.write(hint, move || large));
    let mut turns = 0;
    let file = loop {
        tokio::select! {
            biased;
            written = &mut writing => break written.unwrap(),
            () = tokio::time::sleep(std::time::Duration::from_millis(1)) => turns += 1,
        }
    };
    assert!(turns > 5, "{turns} turns in {:?}", started.elapsed());
    assert!(dumps.read(file).await.unwrap().state["users"] == expected["users"]);
}

#[tokio::test]
async fn dumps_are_noticed_without_a_key() {
    let folder = tempfile::tempdir().unwrap();
    assert!(!any_there(&[hint(&folder)]));
    write(&dumps(), &folder, 1).await;
    assert!(any_there(&[hint(&folder)]));
}
