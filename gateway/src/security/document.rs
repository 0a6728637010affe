//! The security settings as they are stored, told and changed. Member names are those of existing installations; the
//! operations guide's names for two of them are understood and told beside them.

use std::{path::Path, path::PathBuf, time::Duration};

use doorman_crds::networks;
use mongodb::bson::{Bson, Document, doc};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::dump;

/// The least seconds between two automatic dumps.
pub(super) const SHORTEST: u64 = 60;
/// A year: longer is a slip.
const LONGEST: u64 = 31_536_000;

/// Of the document in the collection `settings`.
pub const TYPE: &str = "security_settings";

/// What someone has set. What nobody has set has the environment's default, and stays out of the store, so that a
/// changed default counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecuritySettings {
    /// Dump the memory regularly.
    pub enable_auto_save: Option<bool>,
    /// Seconds between two regular dumps.
    pub auto_save_frequency_seconds: Option<u64>,
    /// Where dumps go.
    pub dump_path: Option<String>,
    /// The only addresses that are let in; none listed: all are.
    pub ip_whitelist: Option<Vec<String>>,
    /// Addresses that are not let in.
    pub ip_blacklist: Option<Vec<String>>,
    /// Believe forwarding headers.
    pub trust_x_forwarded_for: Option<bool>,
    /// The proxies whose headers are believed.
    pub xff_trusted_proxies: Option<Vec<String>>,
    /// Loopback callers skip the lists.
    pub allow_localhost_bypass: Option<bool>,
}

/// The settings in force: what is set, what the environment pins, and defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // As in SecuritySettings.
pub struct Effective {
    pub enable_auto_save: bool,
    pub auto_save_frequency: Duration,
    pub dump_path: PathBuf,
    pub ip_whitelist: Vec<String>,
    pub ip_blacklist: Vec<String>,
    pub trust_x_forwarded_for: bool,
    pub xff_trusted_proxies: Vec<String>,
    pub allow_localhost_bypass: bool,
}

/// Why an update is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{member}: {problem}")]
pub struct Invalid {
    /// The member as the update spells it.
    pub member: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl Invalid {
    fn new(member: &'static str, problem: impl Into<String>) -> Self {
        Self { member, problem: problem.into() }
    }
}

/// What to change; what is not given stays.
#[derive(Clone, Debug, Default, Deserialize)]
#[allow(missing_docs)] // As in SecuritySettings; the two others are the guide's names.
#[serde(default)]
pub struct Update {
    pub enable_auto_save: Option<bool>,
    pub auto_save_memory_enabled: Option<bool>,
    pub auto_save_frequency_seconds: Option<i64>,
    pub auto_save_memory_interval_minutes: Option<f64>,
    pub dump_path: Option<String>,
    pub ip_whitelist: Option<Vec<String>>,
    pub ip_blacklist: Option<Vec<String>>,
    pub trust_x_forwarded_for: Option<bool>,
    pub xff_trusted_proxies: Option<Vec<String>>,
    pub allow_localhost_bypass: Option<bool>,
}

/// Of two names for one thing the one that changes something counts, so that a client may send back what it was told
/// with one of them changed.
fn either<T: PartialEq>(
    current: &T,
    (name, one): (&'static str, Option<T>),
    (other_name, other): (&'static str, Option<T>),
) -> Result<Option<T>, Invalid> {
    match (one, other) {
        (Some(one), Some(other)) if one == other || other == *current => Ok(Some(one)),
        (Some(one), Some(other)) if one == *current => Ok(Some(other)),
        (Some(_), Some(_)) => Err(Invalid::new(name, format!("contradicts {other_name}; give one of them"))),
        (one, other) => Ok(one.or(other)),
    }
}

/// A list whose entries are all addresses or CIDRs.
fn addresses(member: &'static str, entries: Option<&Vec<String>>) -> Result<Option<Vec<String>>, Invalid> {
    let Some(entries) = entries else { return Ok(None) };
    let wrong: Vec<String> =
        entries.iter().filter(|entry| networks::parse(entry).is_none()).map(|entry| format!("{entry:?}")).collect();
    if wrong.is_empty() {
        return Ok(Some(entries.iter().map(|entry| entry.trim().to_owned()).collect()));
    }
    Err(Invalid::new(member, format!("neither an IP address nor a CIDR: {}", wrong.join(", "))))
}

impl SecuritySettings {
    /// With the members that an update gives. `current` is what clients were told.
    pub fn merge(&self, update: &Update, current: &Effective) -> Result<Self, Invalid> {
        const SECONDS: &str = "auto_save_frequency_seconds";
        const MINUTES: &str = "auto_save_memory_interval_minutes";
        let enable_auto_save = either(
            &current.enable_auto_save,
            ("enable_auto_save", update.enable_auto_save),
            ("auto_save_memory_enabled", update.auto_save_memory_enabled),
        )?;
        // A number that is none, or too large to be a time, is refused with the small ones.
        let minutes = update.auto_save_memory_interval_minutes;
        let minutes = minutes.map(|minutes| (minutes * 60.0).round()).map(|seconds| seconds as i64);
        let told = i64::try_from(current.auto_save_frequency.as_secs()).unwrap_or(i64::MAX);
        let seconds = either(&told, (SECONDS, update.auto_save_frequency_seconds), (MINUTES, minutes))?;
        let in_range =
            |seconds: i64| u64::try_from(seconds).ok().filter(|seconds| (SHORTEST..=LONGEST).contains(seconds));
        let member = if update.auto_save_frequency_seconds.is_some() { SECONDS } else { MINUTES };
        let refused = || Invalid::new(member, "must be from 60 seconds to a year");
        let seconds = seconds.map(|seconds| in_range(seconds).ok_or_else(refused)).transpose()?;
        if update.dump_path.as_ref().is_some_and(|path| path.trim().is_empty() || path.contains('\0')) {
            return Err(Invalid::new("dump_path", "must be a path"));
        }
        // What is sent back as it was told has not been set.
        let dump_path = update.dump_path.clone().filter(|path| Path::new(path) != current.dump_path);
        let before = self.clone();
        Ok(Self {
            enable_auto_save: enable_auto_save.or(before.enable_auto_save),
            auto_save_frequency_seconds: seconds.or(before.auto_save_frequency_seconds),
            dump_path: dump_path.or(before.dump_path),
            ip_whitelist: addresses("ip_whitelist", update.ip_whitelist.as_ref())?.or(before.ip_whitelist),
            ip_blacklist: addresses("ip_blacklist", update.ip_blacklist.as_ref())?.or(before.ip_blacklist),
            trust_x_forwarded_for: update.trust_x_forwarded_for.or(before.trust_x_forwarded_for),
            xff_trusted_proxies: addresses("xff_trusted_proxies", update.xff_trusted_proxies.as_ref())?
                .or(before.xff_trusted_proxies),
            allow_localhost_bypass: update.allow_localhost_bypass.or(before.allow_localhost_bypass),
        })
    }

    /// What a store holds. A member that can't be read counts as not set; blank entries of lists as not there.
    fn from_json(mut stored: Map<String, Value>) -> Self {
        fn read<T: DeserializeOwned>(stored: &mut Map<String, Value>, member: &str) -> Option<T> {
            let value = stored.remove(member).filter(|value| !value.is_null())?;
            serde_json::from_value(value)
                .inspect_err(|error| {
                    tracing::warn!(member, %error, "a stored security setting can't be read and has its default");
                })
                .ok()
        }
        let list = |stored: &mut _, member| {
            let entries = read::<Vec<String>>(stored, member);
            entries.map(|entries| entries.into_iter().filter(|entry| !entry.trim().is_empty()).collect())
        };
        let stored = &mut stored;
        Self {
            enable_auto_save: read(stored, "enable_auto_save"),
            auto_save_frequency_seconds: read(stored, "auto_save_frequency_seconds")
                .map(|seconds: u64| seconds.clamp(SHORTEST, LONGEST)),
            dump_path: read::<String>(stored, "dump_path").filter(|path| !path.trim().is_empty()),
            ip_whitelist: list(stored, "ip_whitelist"),
            ip_blacklist: list(stored, "ip_blacklist"),
            trust_x_forwarded_for: read(stored, "trust_x_forwarded_for"),
            xff_trusted_proxies: list(stored, "xff_trusted_proxies"),
            allow_localhost_bypass: read(stored, "allow_localhost_bypass"),
        }
    }

    /// The same, from the document of a database.
    pub fn from_document(document: &Document) -> Self {
        match serde_json::to_value(dump::json::Json(document)) {
            Ok(Value::Object(stored)) => Self::from_json(stored),
            _ => Self::default(),
        }
    }

    /// The document to store.
    pub fn to_document(&self) -> Document {
        let list = |entries: &Vec<String>| Bson::Array(entries.iter().map(|entry| entry.as_str().into()).collect());
        let seconds = self.auto_save_frequency_seconds.map(|seconds| i64::try_from(seconds).unwrap_or(i64::MAX));
        let members: [(&str, Option<Bson>); 8] = [
            ("enable_auto_save", self.enable_auto_save.map(Bson::Boolean)),
            ("auto_save_frequency_seconds", seconds.map(Bson::Int64)),
            ("dump_path", self.dump_path.as_deref().map(Bson::from)),
            ("ip_whitelist", self.ip_whitelist.as_ref().map(list)),
            ("ip_blacklist", self.ip_blacklist.as_ref().map(list)),
            ("trust_x_forwarded_for", self.trust_x_forwarded_for.map(Bson::Boolean)),
            ("xff_trusted_proxies", self.xff_trusted_proxies.as_ref().map(list)),
            ("allow_localhost_bypass", self.allow_localhost_bypass.map(Bson::Boolean)),
        ];
        let mut document = doc! { "type": TYPE };
        document.extend(members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        document
    }

    /// What the mirror file holds; `None`: there is no such file, or nothing to read in it.
    pub fn from_mirror(file: &Path) -> Option<Self> {
        let bytes = match std::fs::read(file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "the security settings file can't be read");
                return None;
            }
        };
        let Ok(Value::Object(stored)) = serde_json::from_slice(&bytes) else {
            tracing::warn!(file = %file.display(), "the security settings file holds no JSON object");
            return None;
        };
        Some(Self::from_json(stored))
    }

    /// Replaces the mirror file. Blocks; a failure is logged, for the store has the settings too.
    pub fn mirror(&self, file: &Path) {
        let bytes = serde_json::to_vec_pretty(&dump::json::Json(&self.to_document())).map_err(std::io::Error::from);
        if let Err(error) = bytes.and_then(|bytes| dump::replace(file, &bytes)) {
            tracing::warn!(file = %file.display(), %error, "the security settings file can't be written");
        }
    }
}

impl Effective {
    /// Both spellings, for clients.
    pub fn to_json(&self) -> Map<String, Value> {
        let seconds = self.auto_save_frequency.as_secs();
        let minutes = if seconds.is_multiple_of(60) { json!(seconds / 60) } else { json!(seconds as f64 / 60.0) };
        let members = [
            ("enable_auto_save", json!(self.enable_auto_save)),
            ("auto_save_memory_enabled", json!(self.enable_auto_save)),
            ("auto_save_frequency_seconds", json!(seconds)),
            ("auto_save_memory_interval_minutes", minutes),
            ("dump_path", json!(self.dump_path.to_string_lossy())),
            ("ip_whitelist", json!(self.ip_whitelist)),
            ("ip_blacklist", json!(self.ip_blacklist)),
            ("trust_x_forwarded_for", json!(self.trust_x_forwarded_for)),
            ("xff_trusted_proxies", json!(self.xff_trusted_proxies)),
            ("allow_localhost_bypass", json!(self.allow_localhost_bypass)),
        ];
        members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// What a person should know about these settings.
    pub fn warnings(&self) -> Vec<&'static str> {
        let any_proxy = self.trust_x_forwarded_for && self.xff_trusted_proxies.is_empty();
        let warning = "trust_x_forwarded_for is on and xff_trusted_proxies is empty: outside production any caller can \
                       choose its address, in production no forwarding header is believed; list the proxies";
        any_proxy.then_some(warning).into_iter().collect()
    }
}
