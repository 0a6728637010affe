//! Who changed what: one JSON object for each event, in the audit trail (reference: gateway behaviour 21.4).
//!
//! In: an [`Event`], written with one line where the change was made. Out: a record of the logger `doorman.audit`
//! whose message is the event. What always holds: no secret of the details is in it, and the message is JSON.

use std::borrow::Cow;
use std::net::IpAddr;

use http::StatusCode;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::logs::AUDIT;
use super::redaction::{self, REDACTED};

macro_rules! actions {
    ($($(#[$meta:meta])* $name:ident = $text:literal,)*) => {
        /// What was done.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the name in the trail says it")]
        pub enum Action { $($(#[$meta])* $name,)* }

        impl Action {
            /// Every action, in the order of the reference.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name in the trail.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

actions! {
    AuthLogin = "auth.login",
    AuthLoginFailed = "auth.login_failed",
    AuthLogout = "auth.logout",
    AuthRefresh = "auth.refresh",
    AuthRevoke = "auth.revoke",
    AuthUnrevoke = "auth.unrevoke",
    AuthEnable = "auth.enable",
    AuthDisable = "auth.disable",
    UserCreate = "user.create",
    UserUpdate = "user.update",
    UserDelete = "user.delete",
    UserPassword = "user.password",
    RoleCreate = "role.create",
    RoleUpdate = "role.update",
    RoleDelete = "role.delete",
    RoleAdopt = "role.adopt",
    RoleRelease = "role.release",
    GroupCreate = "group.create",
    GroupUpdate = "group.update",
    GroupDelete = "group.delete",
    ApiCreate = "api.create",
    ApiUpdate = "api.update",
    ApiDelete = "api.delete",
    ApiAdopt = "api.adopt",
    ApiRelease = "api.release",
    EndpointCreate = "endpoint.create",
    EndpointUpdate = "endpoint.update",
    EndpointDelete = "endpoint.delete",
    EndpointImport = "endpoint.import",
    ValidationCreate = "endpoint_validation.create",
    ValidationUpdate = "endpoint_validation.update",
    ValidationDelete = "endpoint_validation.delete",
    VaultCreate = "vault.create",
    VaultUpdate = "vault.update",
    VaultDelete = "vault.delete",
    MemoryDump = "memory.dump",
    MemoryRestore = "memory.restore",
    ConfigReload = "config.reload",
    ChaosToggle = "tools.chaos_toggle",
    Subscribe = "subscription.subscribe",
    Unsubscribe = "subscription.unsubscribe",
    CreditDefCreate = "credit_def.create",
    CreditDefUpdate = "credit_def.update",
    CreditDefDelete = "credit_def.delete",
    UserCreditsSave = "user_credits.save",
    UserCreditsRotateKey = "user_credits.rotate_key",
    RoutingCreate = "routing.create",
    RoutingUpdate = "routing.update",
    RoutingDelete = "routing.delete",
    TierCreate = "tier.create",
    TierUpdate = "tier.update",
    TierDelete = "tier.delete",
    TierAssignmentSave = "tier_assignment.save",
    TierAssignmentDelete = "tier_assignment.delete",
    RateLimitRuleCreate = "rate_limit_rule.create",
    RateLimitRuleUpdate = "rate_limit_rule.update",
    RateLimitRuleDelete = "rate_limit_rule.delete",
    SecurityUpdateSettings = "security.update_settings",
    SecurityRestart = "security.restart",
    ConfigExportAll = "config.export_all",
    ConfigExportApi = "config.export_api",
    ConfigExportApis = "config.export_apis",
    ConfigExportRole = "config.export_role",
    ConfigExportRoles = "config.export_roles",
    ConfigExportGroup = "config.export_group",
    ConfigExportGroups = "config.export_groups",
    ConfigExportRouting = "config.export_routing",
    ConfigExportRoutings = "config.export_routings",
    ConfigExportEndpoints = "config.export_endpoints",
    ConfigImport = "config.import",
    ConfigRollback = "config.rollback",
    GatewayClearCaches = "gateway.clear_caches",
    IpGlobalDeny = "ip.global_deny",
    IpApiDeny = "ip.api_deny",
    RequestBodySizeExceeded = "request.body_size_exceeded",
}

impl Serialize for Action {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// How it ended: a status of HTTP for most actions, `success`, `scheduled` or `blocked` for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Status {
    /// A status of HTTP.
    Http(u16),
    /// A word.
    Word(&'static str),
}

impl From<StatusCode> for Status {
    fn from(status: StatusCode) -> Self {
        Self::Http(status.as_u16())
    }
}

impl From<&'static str> for Status {
    fn from(word: &'static str) -> Self {
        Self::Word(word)
    }
}

/// One event of the trail.
///
/// ```
/// # use doorman_gateway::telemetry::audit::{Action, Event};
/// # let (address, path, id) = (None, "/platform/user", Some("abc123"));
/// Event::new(Action::UserCreate, "admin", "bob", http::StatusCode::CREATED).from(address, path, id).write();
/// ```
#[derive(Clone, Debug, Serialize)]
pub struct Event<'a> {
    actor: Cow<'a, str>,
    action: Action,
    target: Cow<'a, str>,
    status: Status,
    details: Option<Value>,
    ip: Option<IpAddr>,
    path: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<Cow<'a, str>>,
}

impl<'a> Event<'a> {
    /// Who (empty: nobody is signed in) did what to what, and how it ended.
    pub fn new(action: Action, actor: &'a str, target: &'a str, status: impl Into<Status>) -> Self {
        Self {
            actor: redaction::redact(actor),
            action,
            target: redaction::redact(target),
            status: status.into(),
            details: None,
            ip: None,
            path: None,
            request_id: None,
        }
    }

    /// What else is worth knowing. Secrets in it don't get into the trail.
    #[must_use]
    pub fn details(mut self, details: Value) -> Self {
        self.details = Some(without_secrets(details));
        self
    }

    /// The request it came with.
    #[must_use]
    pub fn from(mut self, ip: Option<IpAddr>, path: &'a str, request_id: Option<&'a str>) -> Self {
        self.ip = ip;
        self.path = Some(redaction::redact(path));
        self.request_id = request_id.map(redaction::redact);
        self
    }

    /// Writes it to the trail.
    pub fn write(&self) {
        let message = match serde_json::to_string(self) {
            Ok(message) => message,
            Err(error) => return tracing::error!(%error, action = self.action.as_str(), "an audit event has no JSON"),
        };
        let (username, request_id) = ((!self.actor.is_empty()).then_some(&*self.actor), self.request_id.as_deref());
        let client_ip = self.ip.map(tracing::field::display);
        tracing::info!(target: AUDIT, request_id, username, client_ip, "{message}");
    }
}

/// Names of members that hold secrets, as parts of them (reference: gateway behaviour 21.5).
const SECRET_PARTS: [&str; 12] = [
    "password",
    "secret",
    "token",
    "key",
    "auth",
    "session",
    "cookie",
    "csrf",
    "connection_string",
    "connectionstring",
    "database_url",
    "mongo_uri",
];

fn without_secrets(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let clean = |(name, value): (String, Value)| {
                let value = if is_secret(&name) && !value.is_null() { REDACTED.into() } else { without_secrets(value) };
                (name, value)
            };
            Value::Object(members.into_iter().map(clean).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_secrets).collect()),
        Value::String(text) if looks_secret(&text) => REDACTED.into(),
        Value::String(text) => redaction::redact(&text).into(),
        other => other,
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");
    name != "api_authorization_field_swap" && SECRET_PARTS.iter().any(|part| name.contains(part))
}

fn looks_secret(text: &str) -> bool {
    let starts_as = |start: &str| text.get(..start.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(start));
    let longest_run = |is_in: fn(u8) -> bool| text.as_bytes().split(|byte| !is_in(*byte)).map(<[u8]>::len).max();
    let of_openai = text.split("sk-").skip(1).any(|rest| {
        rest.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'-' || *byte == b'_').count() >= 32
    });
    starts_as("bearer ")
        || starts_as("basic ")
        || of_openai
        || longest_run(|byte| byte.is_ascii_hexdigit()).is_some_and(|longest| longest >= 32)
        || text.contains("PRIVATE KEY-----")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::settings::LogFormat;
    use crate::telemetry::logs::tests::Sandbox;

    #[test]
    fn an_event_is_one_json_object_in_the_trail_and_nowhere_else() {
        for format in [LogFormat::Json, LogFormat::Plain] {
            let sandbox = Sandbox::with(format, crate::settings::LogLevel::Critical);
            sandbox.during(|| {
                Event::new(Action::ApiCreate, "admin", "orders/v1", StatusCode::CREATED)
                    .details(json!({"api_servers": ["http://a"], "api_authorization_field_swap": "X-Key"}))
                    .from("192.0.2.7".parse().ok(), "/platform/api", Some("abc123"))
                    .write();
            });
            let line = sandbox.trail();
            assert_eq!((line.lines().count(), sandbox.application().as_str()), (1, ""));
            let expected = r#"{"actor":"admin","action":"api.create","target":"orders/v1","status":201,"details":{"api_authorization_field_swap":"X-Key","api_servers":["http://a"]},"ip":"192.0.2.7","path":"/platform/api","request_id":"abc123"}"#;
            let message = match format {
                LogFormat::Json => {
                    let record: Value = serde_json::from_str(&line).unwrap();
                    assert_eq!((&record["name"], &record["username"]), (&"doorman.audit".into(), &"admin".into()));
                    assert_eq!((&record["request_id"], &record["client_ip"]), (&"abc123".into(), &"192.0.2.7".into()));
                    record["message"].as_str().unwrap().to_owned()
                }
                LogFormat::Plain => line.split_once("[request_id=abc123] ").unwrap().1.trim_end().to_owned(),
            };
            assert_eq!(message, expected);
        }
    }

    #[test]
    fn secrets_of_the_details_stay_out_and_the_event_stays_json() {
        let details = json!({
            "user_api_key": "k", "nested": [{"Client-Secret": 7, "session": "s"}], "password": null,
            "note": "Bearer abc", "hash": "0123456789abcdef0123456789abcdef", "text": "cookie=a; b",
            "openai": "sk-0123456789012345678901234567890123", "plain": "stays",
        });
        let event = Event::new(Action::ConfigImport, "admin", "x cookie=abc", "success").details(details);
        let sandbox = Sandbox::new(LogFormat::Json);
        sandbox.during(|| event.write());
        let record: Value = serde_json::from_str(&sandbox.trail()).unwrap();
        let message: Value = serde_json::from_str(record["message"].as_str().unwrap()).unwrap();
        assert_eq!(
            message["details"],
            json!({
                "user_api_key": REDACTED, "nested": [{"Client-Secret": REDACTED, "session": REDACTED}],
                "password": null, "note": REDACTED, "hash": REDACTED, "text": "cookie=[REDACTED]",
                "openai": REDACTED, "plain": "stays",
            })
        );
        assert_eq!((&message["target"], &message["status"]), (&"x cookie=[REDACTED]".into(), &"success".into()));
    }

    #[test]
    fn every_action_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<&str> = Action::ALL.iter().map(|action| action.as_str()).collect();
        assert_eq!(names.len(), Action::ALL.len());
    }
}
