//! Rules on the rate of calls, as they are stored (reference: platform API 15).
//!
//! In: documents, and the texts that name what a rule is about. Out: a [`Rule`], or what is wrong. A rule that can't be
//! read is none.

use std::{net::IpAddr, time::Duration};

use doorman_crds::{networks, path::PathTemplate};
use http::Method;
use ipnet::IpNet;
use mongodb::bson::{Bson, Document};
use serde::{
    Deserialize, Serialize,
    de::{IntoDeserializer, value::Error},
};
use utoipa::ToSchema;

/// Whose calls a rule counts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = RateLimitRuleType)]
pub enum RuleType {
    /// Those of the user that the target names.
    PerUser,
    /// Those to the API that the target names.
    PerApi,
    /// Those to the endpoint that the target names.
    PerEndpoint,
    /// Those from the address or network that the target names.
    PerIp,
    /// Those of each user to each API; the target may name the one API.
    PerUserApi,
    /// Those of each user to each endpoint; the target may name the one endpoint.
    PerUserEndpoint,
    /// All.
    Global,
}

/// How long a rule counts before it starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = RateLimitTimeWindow)]
pub enum TimeWindow {
    /// A second.
    Second,
    /// A minute.
    Minute,
    /// An hour.
    Hour,
    /// A day.
    Day,
    /// A month.
    Month,
}

/// Reads the name of a variant; the error tells which there are.
fn named<T: for<'de> Deserialize<'de>>(member: &str, text: &str) -> Result<T, String> {
    T::deserialize(text.into_deserializer()).map_err(|error: Error| format!("Invalid {member}: {error}"))
}

impl RuleType {
    /// Does it count the requests of each caller apart from those of others?
    pub fn counts_one_caller(self) -> bool {
        match self {
            Self::PerUser | Self::PerIp | Self::PerUserApi | Self::PerUserEndpoint => true,
            Self::PerApi | Self::PerEndpoint | Self::Global => false,
        }
    }

    /// The type of this name.
    pub fn parse(name: &str) -> Result<Self, String> {
        named("rule_type", name)
    }

    fn needs_target(self) -> bool {
        matches!(self, Self::PerUser | Self::PerApi | Self::PerEndpoint | Self::PerIp)
    }
}

impl TimeWindow {
    /// The window of this name.
    pub fn parse(name: &str) -> Result<Self, String> {
        named("time_window", name)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        }
    }

    /// Its length; a month has thirty days.
    pub fn length(self) -> Duration {
        Duration::from_secs(match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
            Self::Month => 30 * 86_400,
        })
    }
}

/// What a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Whatever its type says.
    Any,
    /// A user, by name.
    User(String),
    /// An API.
    Api {
        /// Its name.
        name: String,
        /// Its version; `None`: all of them.
        version: Option<String>,
    },
    /// An endpoint of an API.
    Endpoint {
        /// The method of calls; `None`: all of them.
        method: Option<Method>,
        /// The API's name.
        name: String,
        /// The API's version.
        version: String,
        /// The endpoint's path.
        path: PathTemplate,
    },
    /// An address, or the addresses of a network.
    Network(IpNet),
}

impl Target {
    /// Reads what a rule of this type is about.
    pub fn parse(of: RuleType, text: Option<&str>) -> Result<Self, String> {
        let name = serde_json::to_value(of).unwrap_or_default();
        let name = name.as_str().unwrap_or_default();
        let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else {
            let is_fine = !of.needs_target();
            return if is_fine { Ok(Self::Any) } else { Err(format!("Target identifier required for {name} rules")) };
        };
        let (read, form) = match of {
            RuleType::PerUser => (Some(Self::User(text.to_owned())), "the name of a user"),
            RuleType::PerApi | RuleType::PerUserApi => (api(text), "the name of an API, or its `name/version`"),
            RuleType::PerEndpoint | RuleType::PerUserEndpoint => {
                (endpoint(text), "an endpoint such as `GET /orders/v1/items/{id}`, with or without the method")
            }
            RuleType::PerIp => (networks::parse(text).map(Self::Network), "an IP address or a CIDR"),
            // Whatever it names, it is about all.
            RuleType::Global => (Some(Self::Any), "left out"),
        };
        read.ok_or_else(|| format!("Target identifier of {name} rules must be {form}"))
    }
}

fn api(text: &str) -> Option<Target> {
    let (name, version) = text.split_once('/').map_or((text, None), |(name, version)| (name, Some(version)));
    let is_name = |part: &str| !part.is_empty() && !part.contains(|c: char| c == '/' || c.is_whitespace());
    let is_api = is_name(name) && version.is_none_or(is_name);
    is_api.then(|| Target::Api { name: name.to_owned(), version: version.map(str::to_owned) })
}

fn endpoint(text: &str) -> Option<Target> {
    let (method, path) = text.split_once(' ').map_or((None, text), |(method, path)| (Some(method), path.trim_start()));
    // As clients call it; an API may have the name and version of these two, though.
    let below = path.strip_prefix("/api/rest/").filter(|rest| rest.contains('/'));
    let path = below.or_else(|| path.strip_prefix('/'))?;
    let (api_path, rest) = match path.match_indices('/').nth(1) {
        Some((end, _)) => path.split_at(end),
        None => (path, "/"),
    };
    let Some(Target::Api { name, version: Some(version) }) = api(api_path) else { return None };
    // Other texts are methods too, but no endpoint has them.
    let parse = |text: String| text.bytes().all(|byte| byte.is_ascii_uppercase()).then(|| text.parse().ok())?;
    let method = match method {
        Some(text) => Some(parse(text.to_ascii_uppercase())?),
        None => None,
    };
    Some(Target::Endpoint { method, name, version, path: PathTemplate::parse(rest).ok()? })
}

/// A rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its id.
    pub id: String,
    /// Whose calls it counts together.
    pub rule_type: RuleType,
    /// Which calls it is about.
    pub target: Target,
    /// How long it counts.
    pub window: TimeWindow,
    /// Calls in one window.
    pub limit: u64,
    /// Further calls that may come at once.
    pub burst: u64,
    /// Of several, the one with the largest is looked at first.
    pub priority: i64,
    /// Is it switched on?
    pub is_enabled: bool,
}

/// A number that may have become a fraction elsewhere.
fn whole(document: &Document, member: &str) -> Option<i64> {
    match document.get(member)? {
        Bson::Int32(number) => Some((*number).into()),
        Bson::Int64(number) => Some(*number),
        Bson::Double(number) => Some(*number as i64),
        _ => None,
    }
}

impl Rule {
    /// Reads a stored rule; `None`: it can't be applied.
    pub fn from_document(document: &Document) -> Option<Self> {
        let count = |member| whole(document, member).and_then(|number| u64::try_from(number).ok());
        let rule_type = RuleType::parse(document.get_str("rule_type").ok()?).ok()?;
        Some(Self {
            id: document.get_str("rule_id").ok()?.to_owned(),
            rule_type,
            target: Target::parse(rule_type, document.get_str("target_identifier").ok()).ok()?,
            window: TimeWindow::parse(document.get_str("time_window").ok()?).ok()?,
            limit: count("limit")?,
            burst: count("burst_allowance").unwrap_or(0),
            priority: whole(document, "priority").unwrap_or(0),
            is_enabled: document.get_bool("enabled").unwrap_or(true),
        })
    }

    /// Could a call of this user from this address count? Which API it would go to is not known.
    pub fn can_apply(&self, username: &str, address: IpAddr) -> bool {
        match &self.target {
            Target::User(name) => name == username,
            Target::Network(network) => network.contains(&address.to_canonical()),
            Target::Any | Target::Api { .. } | Target::Endpoint { .. } => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;

    #[test]
    fn a_target_has_the_form_that_its_type_asks_for() {
        use RuleType as R;
        for (of, text) in [
            (R::PerUser, "amy"),
            (R::PerApi, "orders/v1"),
            (R::PerUserApi, "orders/v1"),
            (R::PerEndpoint, "GET /orders/v1/items/{id}"),
            (R::PerApi, "orders"),
            (R::PerEndpoint, "/orders/v1/items"),
            (R::PerEndpoint, "/api/rest/orders/v1/items"),
            (R::PerUserEndpoint, "post /orders/v1"),
            (R::PerIp, "10.0.0.0/8"),
            (R::PerIp, "2001:db8::1"),
        ] {
            assert!(Target::parse(of, Some(text)).is_ok(), "{of:?} {text}");
        }
        for (of, text) in [
            (R::PerApi, "all orders"),
            (R::PerApi, "orders/v1/items"),
            (R::PerApi, "/v1"),
            (R::PerEndpoint, "/orders"),
            (R::PerEndpoint, "GET orders/v1/items"),
            (R::PerEndpoint, "GET /orders"),
            (R::PerEndpoint, "GET /orders/v1/{}"),
            (R::PerIp, "10.0.0.0/33"),
            (R::PerIp, "localhost"),
        ] {
            assert!(Target::parse(of, Some(text)).is_err(), "{of:?} {text}");
        }
        for of in [R::PerUser, R::PerApi, R::PerEndpoint, R::PerIp] {
            for nothing in [None, Some(""), Some("  ")] {
                assert!(Target::parse(of, nothing).is_err(), "{of:?}");
            }
        }
        for of in [R::PerUserApi, R::PerUserEndpoint, R::Global] {
            assert_eq!(Target::parse(of, None), Ok(Target::Any), "{of:?}");
        }
        assert_eq!(Target::parse(R::Global, Some("amy")), Ok(Target::Any), "it is about all, whatever it names");
        let root = Target::parse(R::PerEndpoint, Some("get /orders/v1")).unwrap();
        let path = PathTemplate::parse("/").unwrap();
        assert_eq!(
            root,
            Target::Endpoint { method: Some(Method::GET), name: "orders".into(), version: "v1".into(), path }
        );
    }

    #[test]
    fn what_can_not_be_read_is_no_rule() {
        let stored = doc! { "rule_id": "r", "rule_type": "per_ip", "time_window": "day", "limit": 5.0,
        "target_identifier": "10.0.0.0/8", "priority": 2 };
        let rule = Rule::from_document(&stored).unwrap();
        assert_eq!((rule.limit, rule.burst, rule.priority, rule.is_enabled), (5, 0, 2, true));
        assert!(
            rule.can_apply("amy", "10.1.2.3".parse().unwrap()) && !rule.can_apply("amy", "11.0.0.1".parse().unwrap())
        );
        for (member, value) in
            [("rule_type", "per_moon"), ("time_window", "week"), ("target_identifier", "x"), ("limit", "5")]
        {
            let mut broken = stored.clone();
            broken.insert(member, value);
            assert!(Rule::from_document(&broken).is_none(), "{member}");
        }
    }
}
