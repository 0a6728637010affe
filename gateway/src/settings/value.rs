//! The types settings have, and how each is read from text.
//!
//! In: the trimmed, non-empty text of one variable. Out: a value, or what to do about a text that is none.
//! A reader of text never echoes a secret.

use std::{fmt, net::Ipv6Addr, num::NonZeroU16, num::NonZeroU32, path::PathBuf, time::Duration};

use doorman_crds::networks;
use http::{HeaderName, HeaderValue, Method};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// What to do about a text that isn't of the variable's type.
pub(super) enum Misread<T> {
    /// Choosing a value here could open or break something: don't start.
    Refuse(String),
    /// Warn and use the default.
    UseDefault(String),
    /// Warn and use this value.
    Use(T, String),
}

/// A type a variable can have.
pub(super) trait Parse: Sized {
    /// The type's name on the docs page.
    const KIND: &'static str;
    /// May the value be given as a file (`NAME_FILE`), and must it be kept out of every message?
    const SECRET: bool = false;

    fn parse(text: &str) -> Result<Self, Misread<Self>>;

    /// The value of a variable that is unset and has no default.
    fn unset() -> Option<Self> {
        None
    }
}

impl<T: Parse> Parse for Option<T> {
    const KIND: &'static str = T::KIND;
    const SECRET: bool = T::SECRET;

    fn parse(text: &str) -> Result<Self, Misread<Self>> {
        T::parse(text).map(Some).map_err(|misread| match misread {
            Misread::Refuse(why) => Misread::Refuse(why),
            Misread::UseDefault(why) => Misread::UseDefault(why),
            Misread::Use(value, why) => Misread::Use(Some(value), why),
        })
    }

    fn unset() -> Option<Self> {
        Some(None)
    }
}

macro_rules! numbers {
    ($($type:ty: $kind:literal),*) => { $(
        impl Parse for $type {
            const KIND: &'static str = $kind;

            fn parse(text: &str) -> Result<Self, Misread<Self>> {
                text.parse().map_err(|_| Misread::UseDefault(format!("{text:?} is not a {} in range", Self::KIND)))
            }
        }
    )* };
}
numbers!(u16: "number", NonZeroU16: "number above 0", u32: "number", NonZeroU32: "number above 0");

impl Parse for bool {
    const KIND: &'static str = "true or false";

    fn parse(text: &str) -> Result<Self, Misread<Self>> {
        match text.to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Ok(true),
            "0" | "false" | "no" | "off" => Ok(false),
            _ => Err(Misread::Refuse(format!("{text:?} is neither true nor false"))),
        }
    }
}

impl Parse for String {
    const KIND: &'static str = "text";

    fn parse(text: &str) -> Result<Self, Misread<Self>> {
        Ok(text.to_owned())
    }
}

impl Parse for PathBuf {
    const KIND: &'static str = "path";

    fn parse(text: &str) -> Result<Self, Misread<Self>> {
        Ok(text.into())
    }
}

impl Parse for Duration {
    const KIND: &'static str = "seconds";

    fn parse(text: &str) -> Result<Self, Misread<Self>> {
        // A year: longer is a slip, and an endless duration overflows the clock arithmetic of whoever waits for it.
        const LONGEST: f64 = 365.0 * 86_400.0;
        text.parse::<f64>()
            .ok()
            .filter(|seconds| (0.0..=LONGEST).contains(seconds))
            .map(Duration::from_secs_f64)
            .ok_or_else(|| Misread::UseDefault(format!("{text:?} is not a number of seconds between 0 and a year")))
    }
}

impl Parse for HeaderValue {
    const KIND: &'static str = "header value";

    fn parse(text: &str) -> Result<Self, Misread<Self>> {
        Self::from_str(text).map_err(|_| Misread::Refuse("holds characters a header can't carry".into()))
    }
}

/// A comma list, or a JSON list of texts, of anything that can be read from one entry.
fn list<T>(text: &str, entry: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    // A text that only begins as JSON does, such as `[::1]:6379`, is one of the first kind; one that has lost its quotes to a
    // shell or an env file, such as `[10.0.1.10, 10.0.2.0/24]`, of the second.
    let bare = text.trim().strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let bare = bare.filter(|inner| !inner.contains(['[', ']', '"']) && inner.parse::<Ipv6Addr>().is_err());
    let split = || bare.unwrap_or(text).split(',').map(str::to_owned).collect();
    let entries: Vec<String> = serde_json::from_str(text).unwrap_or_else(|_| split());
    entries.iter().map(|one| one.trim()).filter(|one| !one.is_empty()).map(entry).collect()
}

macro_rules! lists {
    ($($type:ty, $kind:literal, $entry:expr;)*) => { $(
        impl Parse for Vec<$type> {
            const KIND: &'static str = $kind;

            fn parse(text: &str) -> Result<Self, Misread<Self>> {
                list(text, $entry).map_err(Misread::Refuse)
            }

            fn unset() -> Option<Self> {
                Some(Vec::new())
            }
        }
    )* };
}
lists! {
    String, "list", |entry| Ok(entry.to_owned());
    HostPort, "list of `host[:port]`", HostPort::from_entry;
    Method, "list of methods", |entry| {
        Method::from_bytes(entry.to_ascii_uppercase().as_bytes()).map_err(|_| format!("{entry:?} is not an HTTP method"))
    };
    IpNet, "list of addresses and CIDRs", |entry| {
        let net = networks::parse(entry).map(|net| net.trunc());
        net.ok_or_else(|| format!("{entry:?} is neither an IP address nor a CIDR"))
    };
}

/// A type whose values are a fixed set of words.
macro_rules! words {
    ($(
        $(#[$doc:meta])*
        $name:ident ($kind:literal, $otherwise:expr) { $( $(#[$word_doc:meta])* $variant:ident = $($word:literal)|+, )* }
    )*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $( $(#[$word_doc])* $variant, )* }

        impl Parse for $name {
            const KIND: &'static str = $kind;

            fn parse(text: &str) -> Result<Self, Misread<Self>> {
                match text.to_ascii_lowercase().as_str() {
                    $( $($word)|+ => Ok(Self::$variant), )*
                    _ => Err($otherwise(text)),
                }
            }
        }
    )* };
}

words! {
    /// Whether the production guards are on (`ENV`).
    Environment("text", |text: &str| Misread::Use(
        Environment::Development,
        format!("{text:?} is not `production`: the production guards are off"),
    )) {
        /// Every guard applies.
        Production = "production",
        /// Anything else.
        Development = "development" | "dev" | "test" | "testing" | "local" | "ci",
    }

    /// Where documents, caches and counters live (`MEM_OR_EXTERNAL`).
    StorageMode("`MEM`, `REDIS`, `EXTERNAL`", |text: &str| Misread::Use(
        StorageMode::External,
        format!("{text:?} is not `MEM` and is taken as `EXTERNAL`"),
    )) {
        /// In this process; one process by definition.
        Memory = "mem",
        /// MongoDB for documents; Redis for caches, counters and revocations.
        External = "redis" | "external",
    }

    /// What limits do while their store is away (`DOORMAN_LIMITS_FAIL_MODE`).
    FailMode("`Open`, `Closed`", |text: &str| Misread::Refuse(format!("{text:?} is neither `Open` nor `Closed`"))) {
        /// Each process counts for itself.
        Open = "open",
        /// What is limited is refused.
        Closed = "closed",
    }

    /// `SameSite` of the session cookies (`COOKIE_SAMESITE`).
    SameSite("`strict`, `lax`, `none`", |text: &str| Misread::Use(
        SameSite::Lax,
        format!("{text:?} is not known and is taken as `lax`"),
    )) {
        /// Sent on same-site requests only.
        Strict = "strict",
        /// Also sent on top-level navigation.
        Lax = "lax",
        /// Always sent; has no effect without the Secure attribute, then it is `lax`.
        None = "none",
    }

    /// The unit of a token life.
    TimeUnit("`seconds`, `minutes`, `hours`, `days`, `weeks`", |text: &str| Misread::Use(
        TimeUnit::Minutes,
        format!("{text:?} is not a unit of time and is taken as `minutes`"),
    )) {
        /// 1 s.
        Seconds = "s" | "sec" | "secs" | "second" | "seconds",
        /// 60 s.
        Minutes = "m" | "min" | "mins" | "minute" | "minutes",
        /// 3,600 s.
        Hours = "h" | "hr" | "hrs" | "hour" | "hours",
        /// 86,400 s.
        Days = "d" | "day" | "days",
        /// 604,800 s.
        Weeks = "w" | "wk" | "wks" | "week" | "weeks",
    }

    /// How a log record is written (`LOG_FORMAT`).
    LogFormat("`plain`, `json`", |text: &str| Misread::UseDefault(format!("{text:?} is neither `plain` nor `json`"))) {
        /// One readable line.
        Plain = "plain" | "text",
        /// One JSON object a line.
        Json = "json",
    }

    /// The least severe record that is written (`LOG_LEVEL`).
    LogLevel("`DEBUG`, `INFO`, `WARNING`, `ERROR`, `CRITICAL`", |text: &str| {
        Misread::UseDefault(format!("{text:?} is not a log level"))
    }) {
        /// Everything.
        Debug = "debug",
        /// What an operator wants to follow.
        Info = "info",
        /// What may need attention.
        Warning = "warning" | "warn",
        /// What failed.
        Error = "error",
        /// What stops the service.
        Critical = "critical",
    }

    /// Whether the platform API may write definitions to the cluster (`DOORMAN_PLATFORM_DEFINITIONS`).
    PlatformDefinitions("`ReadOnly`, `ReadWrite`", |text: &str| {
        Misread::Refuse(format!("{text:?} is none of `ReadOnly`, `ReadWrite`"))
    }) {
        /// It may not.
        ReadOnly = "readonly",
        /// It may.
        ReadWrite = "readwrite",
    }

    /// The namespaces a gateway takes API definitions from (`DOORMAN_APIS_NAMESPACES`).
    ApiNamespaces("`Same`, `All`, `Selector`", |text: &str| {
        Misread::Refuse(format!("{text:?} is none of `Same`, `All`, `Selector`"))
    }) {
        /// Only the gateway's own.
        Same = "same",
        /// Every namespace.
        All = "all",
        /// Those that `DOORMAN_APIS_NAMESPACE_SELECTOR` selects.
        Selector = "selector",
    }
}

impl TimeUnit {
    /// So many of this unit.
    pub fn times(self, count: NonZeroU32) -> Duration {
        let seconds = match self {
            Self::Seconds => 1,
            Self::Minutes => 60,
            Self::Hours => 3_600,
            Self::Days => 86_400,
            Self::Weeks => 604_800,
        };
        Duration::from_secs(seconds * u64::from(count.get()))
    }
}

/// A number of bytes, above 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteCount(pub u64);

impl Parse for ByteCount {
    const KIND: &'static str = "bytes";

    fn parse(text: &str) -> Result<Self, Misread<Self>> {
        let bytes = text.parse().ok().filter(|bytes| *bytes > 0).map(Self);
        bytes.ok_or_else(|| Misread::UseDefault(format!("{text:?} is not a number of bytes above 0")))
    }
}

/// A text that never shows in logs, errors or debug output.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for the code that needs it to sign, encrypt or log in.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Length in characters.
    pub fn chars(&self) -> usize {
        self.0.chars().count()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("[redacted]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("[redacted]")
    }
}

impl Parse for Secret {
    const KIND: &'static str = "secret";
    const SECRET: bool = true;

    fn parse(text: &str) -> Result<Self, Misread<Self>> {
        Ok(Self(text.to_owned()))
    }
}

/// A server's address: a name or an IP address (IPv6 without brackets), and the port when one was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Name or address.
    pub host: String,
    /// `None`: the default port of the protocol.
    pub port: Option<u16>,
}

impl HostPort {
    fn from_entry(entry: &str) -> Result<Self, String> {
        let wrong = || format!("{entry:?} is not `host` or `host:port`");
        let (host, port) = match entry.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']').ok_or_else(wrong)?;
                address.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
                (address, if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or_else(wrong)?) })
            }
            None => match entry.split_once(':') {
                // More than one colon without brackets: a bare IPv6 address, or nothing.
                Some((_, rest)) if rest.contains(':') => {
                    entry.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
                    (entry, None)
                }
                Some((host, port)) => (host, Some(port)),
                None => (entry, None),
            },
        };
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || "/@?#[]".contains(c)) {
            return Err(wrong());
        }
        let port = port.map(|port| port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)).transpose()?;
        Ok(Self { host: host.to_owned(), port })
    }
}

/// Origins that browsers may call the platform API from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// `*`.
    Any,
    /// These, lower-case, as `scheme://host[:port]`.
    Listed(Vec<String>),
}

impl Parse for Origins {
    const KIND: &'static str = "list of origins, or `*`";

    fn parse(text: &str) -> Result<Self, Misread<Self>> {
        let mut never_equal = Vec::new();
        let origins = list(text, |entry| Ok(entry.to_ascii_lowercase())).map_err(Misread::Refuse)?;
        if origins.iter().any(|origin| origin == "*") {
            return Ok(Self::Any);
        }
        let origins = origins
            .into_iter()
            .map(|origin| {
                let trimmed = origin.trim_end_matches('/');
                if trimmed.len() < origin.len() {
                    never_equal.push(origin.clone());
                }
                match trimmed.split_once("://") {
                    Some((scheme, host))
                        if scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                            && !host.is_empty()
                            && !host.contains(['/', '"', ' ']) =>
                    {
                        Ok(trimmed.to_owned())
                    }
                    _ => Err(Misread::Refuse(format!("{origin:?} is not an origin such as `https://app.example.com`"))),
                }
            })
            .collect::<Result<_, _>>()
            .map(Self::Listed)?;
        if never_equal.is_empty() {
            Ok(origins)
        } else {
            let why = format!("an origin has no `/` at its end; read {} without it", never_equal.join(", "));
            Err(Misread::Use(origins, why))
        }
    }
}

/// Header names a preflight answer lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderNames(pub Vec<HeaderName>);

impl Parse for HeaderNames {
    const KIND: &'static str = "list of header names";

    fn parse(text: &str) -> Result<Self, Misread<Self>> {
        const USUAL: &str = "Accept,Content-Type,X-CSRF-Token,Authorization,X-Requested-With";
        let wanted = if text == "*" { USUAL } else { text };
        list(wanted, |name| name.parse().map_err(|_| format!("{name:?} is not a header name")))
            .map(Self)
            .map_err(Misread::Refuse)
    }
}

impl Parse for LabelSelector {
    const KIND: &'static str = "label selector (JSON)";

    fn parse(text: &str) -> Result<Self, Misread<Self>> {
        let refuse = |why: String| Misread::Refuse(why);
        let json: serde_json::Value =
            serde_json::from_str(text).map_err(|error| refuse(format!("is not JSON: {error}")))?;
        // An unknown member is a typing error, and an emptied selector selects everything.
        let members = json.as_object().ok_or_else(|| refuse("is not a JSON object".into()))?;
        if let Some(unknown) = members.keys().find(|key| !matches!(key.as_str(), "matchLabels" | "matchExpressions")) {
            return Err(refuse(format!("{unknown:?} is neither `matchLabels` nor `matchExpressions`")));
        }
        let selector: Self =
            serde_json::from_value(json).map_err(|error| refuse(format!("is not a label selector: {error}")))?;
        for rule in selector.match_expressions.iter().flatten() {
            let has_values = rule.values.as_ref().is_some_and(|values| !values.is_empty());
            match rule.operator.as_str() {
                "In" | "NotIn" if has_values => {}
                "Exists" | "DoesNotExist" if !has_values => {}
                "In" | "NotIn" => return Err(refuse(format!("`{}` on {:?} needs values", rule.operator, rule.key))),
                "Exists" | "DoesNotExist" => {
                    return Err(refuse(format!("`{}` on {:?} takes no values", rule.operator, rule.key)));
                }
                other => return Err(refuse(format!("{other:?} is not an operator of label selectors"))),
            }
        }
        Ok(selector)
    }
}
