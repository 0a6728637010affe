//! The settings that change while the process runs.
//!
//! In: the configuration file, read again when someone asks. Out: one tree that readers take as it is at that moment. What
//! always holds: a file that would keep the gateway from starting changes nothing; rows that are not marked live stay as
//! they were at start, and the one who asked is told which of them the file says otherwise.

use std::{collections::BTreeMap, fmt, sync::Arc};

use arc_swap::{ArcSwap, Guard};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    Settings, SettingsErrors, Warning,
    source::{CONFIG_FILE, Reader, Source},
    table::{Effect, Now, SECTIONS, Variable},
};

/// Keys that configuration files of other versions have, with an example; they are shown, and nothing acts on them.
pub(super) const KNOWN_ELSEWHERE: [(&str, &str); 16] = [
    ("LOG_FILE", "doorman.log"),
    ("GATEWAY_TIMEOUT", "30"),
    ("UPSTREAM_TIMEOUT", "30"),
    ("CONNECTION_TIMEOUT", "10"),
    ("RATE_LIMIT_ENABLED", "true"),
    ("RATE_LIMIT_REQUESTS", "100"),
    ("RATE_LIMIT_WINDOW", "60"),
    ("CACHE_TTL", "300"),
    ("RETRY_ENABLED", "true"),
    ("RETRY_MAX_ATTEMPTS", "3"),
    ("RETRY_BACKOFF", "1.0"),
    ("METRICS_ENABLED", "true"),
    ("METRICS_INTERVAL", "60"),
    ("FEATURE_REQUEST_REPLAY", "false"),
    ("FEATURE_AB_TESTING", "false"),
    ("FEATURE_COST_ANALYTICS", "false"),
];
/// Keys of such files that this gateway knows and reads at start only.
const AT_START: [&str; 2] = ["LOG_FORMAT", "CACHE_MAX_SIZE"];

/// What is shared by all copies of the settings.
#[derive(Clone)]
pub(super) struct Live(Arc<State>);

struct State {
    /// The environment at start, without the configuration file.
    environment: Source,
    /// What each row was read from at start.
    start: BTreeMap<&'static str, String>,
    now: ArcSwap<Now>,
    said: ArcSwap<Said>,
}

/// The texts behind the tree.
#[derive(Clone)]
struct Said {
    texts: BTreeMap<&'static str, String>,
    foreign: BTreeMap<String, String>,
}

impl fmt::Debug for Live {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Live").finish_non_exhaustive()
    }
}

impl Live {
    pub(super) fn new(environment: Source, start: Now, mut reader: Reader) -> Self {
        let texts = std::mem::take(&mut reader.texts);
        let said = Said { texts: texts.clone(), foreign: reader.foreign() };
        let state =
            State { environment, start: texts, now: ArcSwap::from_pointee(start), said: ArcSwap::from_pointee(said) };
        Self(Arc::new(state))
    }
}

/// What reading the configuration file again has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Names of the settings that have another value now.
    pub changed: Vec<&'static str>,
    /// Names of the settings whose new value acts after a restart.
    pub needs_restart: Vec<&'static str>,
    /// What else a person should know.
    pub warnings: Vec<Warning>,
}

/// A key of the configuration file.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Reloadable {
    /// The name, as in the environment.
    key: &'static str,
    /// What it does, and whether a reload is enough.
    description: String,
    /// A value it may have.
    example: &'static str,
}

fn rows() -> impl Iterator<Item = &'static Variable> {
    SECTIONS.iter().flat_map(|section| section.variables)
}

fn shown_rows() -> impl Iterator<Item = &'static Variable> {
    rows().filter(|row| !row.is_secret && (row.is_live || AT_START.contains(&row.name)))
}

/// A text as people mean it: yes or no, a number, else itself.
fn typed(text: &str, is_flag: bool) -> Value {
    match text.to_ascii_lowercase().as_str() {
        "" => Value::Null,
        "true" | "yes" => true.into(),
        "false" | "no" => false.into(),
        "1" | "on" if is_flag => true.into(),
        "0" | "off" if is_flag => false.into(),
        _ => {
            let whole = text.parse::<i64>().ok().map(Value::from);
            let number = || text.parse().ok().filter(|number: &f64| number.is_finite()).map(Value::from);
            whole.or_else(number).unwrap_or_else(|| text.into())
        }
    }
}

impl Settings {
    /// The settings as they are now. Costs about as much as a pointer; don't hold it across an await.
    pub fn live(&self) -> Guard<Arc<Now>> {
        self.live.0.now.load()
    }

    /// Reads the configuration file again. When it doesn't allow a start, everything stays as it is.
    pub fn reload(&self) -> Result<Reloaded, SettingsErrors> {
        let state = &self.live.0;
        let (new, warnings) = Self::load(state.environment.clone())?;
        let new_texts = &new.live.0.start;
        let before = state.said.load_full();
        let mut said = Said::clone(&before);
        said.foreign.clone_from(&new.live.0.said.load().foreign);
        let mut reloaded = Reloaded { warnings, ..Reloaded::default() };
        for row in rows() {
            let Some(text) = new_texts.get(row.name) else { continue };
            if row.is_live && before.texts.get(row.name) != Some(text) {
                reloaded.changed.push(row.name);
                said.texts.insert(row.name, text.clone());
            } else if !row.is_live && state.start.get(row.name) != Some(text) {
                reloaded.needs_restart.push(row.name);
            }
        }
        let mut now = Now::clone(&state.now.load());
        now.take_live(Now::clone(&new.live()));
        state.now.store(Arc::new(now));
        state.said.store(Arc::new(said));
        Ok(reloaded)
    }

    /// The keys of the configuration file and their values now: those that change while the process runs, and those that
    /// files of other versions have.
    pub fn shown(&self) -> Map<String, Value> {
        let said = self.live.0.said.load();
        let own = shown_rows().map(|row| {
            let text = said.texts.get(row.name).map(String::as_str).unwrap_or_default();
            (row.name.to_owned(), typed(text, row.kind == <bool as super::value::Parse>::KIND))
        });
        let foreign = KNOWN_ELSEWHERE.iter().map(|(key, _)| {
            let text = said.foreign.get(*key).map(String::as_str).unwrap_or_default();
            ((*key).to_owned(), typed(text, false))
        });
        own.chain(foreign).collect()
    }

    /// Where the settings come from, in words.
    pub fn source(&self) -> String {
        match &self.server.config_file {
            Some(path) => format!("environment, then {}", path.display()),
            None => format!("environment ({CONFIG_FILE} is unset)"),
        }
    }
}

impl Reloadable {
    /// The keys that [`Settings::shown`] shows.
    pub fn all() -> Vec<Self> {
        let own = shown_rows().map(|row| {
            let more = match (row.effect, row.is_live) {
                (Effect::NotYet, _) => " Not used by this version yet.",
                (Effect::Used, true) => "",
                (Effect::Used, false) => " Takes a restart.",
            };
            let example = if row.default.is_empty() { "1048576" } else { row.default };
            Self { key: row.name, description: format!("{}{more}", row.meaning), example }
        });
        let foreign = KNOWN_ELSEWHERE.into_iter().map(|(key, example)| Self {
            key,
            description: "Shown; nothing acts on it.".into(),
            example,
        });
        own.chain(foreign).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use tempfile::TempDir;

    use super::*;
    use crate::settings::{ByteCount, LogLevel};

    fn file(name: &str, text: &str) -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        (folder, path)
    }

    fn load(path: &std::path::Path, more: &[(&str, &str)]) -> Result<(Settings, Vec<Warning>), SettingsErrors> {
        let base = [
            ("JWT_SECRET_KEY", "0123456789abcdef0123456789abcdef"),
            ("DOORMAN_ADMIN_PASSWORD", "long-enough-password"),
            (CONFIG_FILE, path.to_str().unwrap()),
        ];
        Settings::load(Source::from_pairs(base.iter().chain(more).copied()))
    }

    #[test]
    fn live_rows_follow_the_file_and_others_wait_for_a_restart() {
        let (_folder, path) = file("doorman.yaml", "log:\n  level: WARNING\nport: 7001\n");
        let settings = load(&path, &[]).unwrap().0;
        let copy = settings.clone();
        assert_eq!((settings.live().logs.level, settings.server.port), (LogLevel::Warning, 7001));

        fs::write(&path, "log: {level: DEBUG}\nmax_body_size_bytes: 10\nstrict_response_envelope: true\nport: 7002\n")
            .unwrap();
        let reloaded = settings.reload().unwrap();
        assert_eq!(reloaded.changed, ["MAX_BODY_SIZE_BYTES", "LOG_LEVEL", "STRICT_RESPONSE_ENVELOPE"]);
        assert_eq!(reloaded.needs_restart, ["PORT"]);
        let now = copy.live();
        assert_eq!((now.logs.level, now.limits.rest(), now.server.port), (LogLevel::Debug, ByteCount(10), 7001));
        assert!(now.features.strict_envelope);
        assert_eq!(settings.reload().unwrap().changed, [""; 0], "nothing is new");

        fs::write(&path, "").unwrap();
        settings.reload().unwrap();
        assert_eq!((copy.live().logs.level, copy.live().limits.body), (LogLevel::Info, ByteCount(1_048_576)));
    }

    #[test]
    fn the_environment_wins_under_any_of_its_names() {
        let (_folder, path) =
            file("doorman.json", r#"{"LOG_LEVEL": "DEBUG", "mem_or_external": "REDIS", "cache": {"max_size": 7}}"#);
        let settings = load(&path, &[("LOG_LEVEL", "ERROR"), ("MEM_OR_REDIS", "MEM")]).unwrap().0;
        assert_eq!(settings.live().logs.level, LogLevel::Error);
        assert!(settings.storage.is_memory());
        assert_eq!(settings.storage.cache_entries.get(), 7);
    }

    #[test]
    fn a_file_that_allows_no_start_is_refused_and_changes_nothing() {
        let (_folder, path) = file("doorman.yaml", "log: {level: DEBUG}");
        let settings = load(&path, &[]).unwrap().0;
        for broken in ["log: [", "https_only: perhaps", "jwt_secret_key: 0123456789abcdef0123456789abcdef"] {
            fs::write(&path, broken).unwrap();
            assert!(settings.reload().is_err(), "{broken}");
            assert!(load(&path, &[]).is_err(), "{broken}");
            assert_eq!(settings.live().logs.level, LogLevel::Debug);
        }
        fs::remove_file(&path).unwrap();
        assert!(settings.reload().is_err());
    }

    #[test]
    fn keys_that_are_none_are_told() {
        let (_folder, path) = file("doorman.yaml", "lgo_level: DEBUG\nrate_limit: {requests: 5, enabled: yes}\n");
        let (settings, warnings) = load(&path, &[]).unwrap();
        let told: Vec<&str> = warnings.iter().map(|warning| warning.variable.as_str()).collect();
        assert!(told.contains(&"LGO_LEVEL") && !told.contains(&"RATE_LIMIT_REQUESTS"), "{told:?}");
        let shown = settings.shown();
        assert_eq!(
            (&shown["RATE_LIMIT_REQUESTS"], &shown["RATE_LIMIT_ENABLED"]),
            (&Value::from(5), &Value::from(true))
        );
        assert_eq!((&shown["LOG_LEVEL"], &shown["GATEWAY_TIMEOUT"]), (&Value::from("INFO"), &Value::Null));
        assert_eq!(
            (&shown["HTTP_RETRY_BASE_DELAY"], &shown["CIRCUIT_BREAKER_ENABLED"]),
            (&Value::from(0.25), &true.into())
        );
    }

    #[test]
    fn every_shown_key_is_described_and_none_is_a_secret() {
        let described: Vec<&str> = Reloadable::all().iter().map(|key| key.key).collect();
        let (_folder, path) = file("doorman.yaml", "");
        let shown = load(&path, &[]).unwrap().0.shown();
        assert_eq!(described.len(), shown.len());
        assert!(described.iter().all(|key| shown.contains_key(*key)));
        assert!(rows().filter(|row| row.is_secret).all(|row| !shown.contains_key(row.name) && !row.is_live));
    }
}
