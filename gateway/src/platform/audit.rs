//! What of the platform API goes into the audit trail: every call that changes something or takes much out.
//!
//! Handlers say nothing: the route tells the action, the path or the body the target, the answer the outcome. Who calls is
//! noted where callers are identified. Calls of nobody in particular that were refused are not in the trail, sign-ins
//! excepted: strangers must not be able to flood it.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::{
    extract::{MatchedPath, RawPathParams, Request},
    middleware::Next,
    response::Response,
};
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    client::{CallerName, ClientAddress, RequestId},
    telemetry::audit::{Action, Event, Status},
};

/// What is learned of a call on its way. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Trail(Arc<Mutex<Noted>>);

#[derive(Debug, Default)]
struct Noted {
    actor: Option<Arc<str>>,
    /// Whose sign-in or registration it is.
    account: Option<Arc<str>>,
    /// Kept only where names are looked for in it: callers may wait long, and there may be many.
    body: Option<Bytes>,
    keeps_body: bool,
}

impl Trail {
    fn new(keeps_body: bool) -> Self {
        Self(Arc::new(Mutex::new(Noted { keeps_body, ..Noted::default() })))
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who calls.
    pub(super) fn actor(&self, username: &Arc<str>) {
        self.noted().actor = Some(Arc::clone(username));
    }

    /// Whose account a stranger speaks of. Only of one that exists: people type passwords where names belong.
    pub(super) fn account(&self, username: &Arc<str>) {
        self.noted().account = Some(Arc::clone(username));
    }

    /// What was sent; of it only names get into the trail.
    pub(super) fn body(&self, bytes: &Bytes) {
        let mut noted = self.noted();
        noted.body = noted.keeps_body.then(|| bytes.clone());
    }
}

/// Which names make the target.
#[derive(Clone, Copy)]
enum Target {
    /// The parameters of the path.
    Path,
    /// These members of the body.
    Body(&'static [&'static str]),
    /// Always this.
    Fixed(&'static str),
    /// The one that the query names, else this.
    Query(&'static str, &'static str),
    /// `user:name/version`.
    Subscription,
}

/// What a call of a route is in the trail; `None`: it isn't.
#[rustfmt::skip]
fn entry(method: &Method, path: &str) -> Option<(Action, Target)> {
    use Action as A;
    use Target::{Body, Fixed, Path, Query, Subscription};
    let of_endpoint: Target = Body(&["endpoint_method", "api_name", "api_version", "endpoint_uri"]);
    Some(match (method.as_str(), path.strip_prefix("/platform").unwrap_or(path)) {
        ("POST", "/authorization") => (A::AuthLogin, Fixed("")),
        ("POST", "/authorization/register") => (A::UserCreate, Fixed("")),
        ("POST", "/authorization/refresh") => (A::AuthRefresh, Fixed("")),
        ("POST", "/authorization/invalidate") => (A::AuthLogout, Body(&["username"])),
        ("POST", "/authorization/admin/revoke/{username}") => (A::AuthRevoke, Path),
        ("POST", "/authorization/admin/unrevoke/{username}") => (A::AuthUnrevoke, Path),
        ("POST", "/authorization/admin/enable/{username}") => (A::AuthEnable, Path),
        ("POST", "/authorization/admin/disable/{username}") => (A::AuthDisable, Path),
        ("POST", "/user") => (A::UserCreate, Body(&["username"])),
        ("PUT", "/user/{username}") => (A::UserUpdate, Path),
        ("DELETE", "/user/{username}") => (A::UserDelete, Path),
        ("PUT", "/user/{username}/update-password") => (A::UserPassword, Path),
        ("POST", "/role") => (A::RoleCreate, Body(&["role_name"])),
        ("PUT", "/role/{role_name}") => (A::RoleUpdate, Path),
        ("POST", "/role/{role_name}/adopt") => (A::RoleAdopt, Path),
        ("POST", "/role/{role_name}/release") => (A::RoleRelease, Path),
        ("DELETE", "/role/{role_name}") => (A::RoleDelete, Path),
        ("POST", "/group") => (A::GroupCreate, Body(&["group_name"])),
        ("PUT", "/group/{group_name}") => (A::GroupUpdate, Path),
        ("DELETE", "/group/{group_name}") => (A::GroupDelete, Path),
        ("POST", "/api") => (A::ApiCreate, Body(&["api_name", "api_version"])),
        ("PUT", "/api/{api_name}/{api_version}") => (A::ApiUpdate, Path),
        ("POST", "/api/{api_name}/{api_version}/adopt") => (A::ApiAdopt, Path),
        ("POST", "/api/{api_name}/{api_version}/release") => (A::ApiRelease, Path),
        ("DELETE", "/api/{api_name}/{api_version}") => (A::ApiDelete, Path),
        ("POST", path) if path.starts_with("/api/") && path.ends_with("/import") => (A::EndpointImport, Path),
        ("POST", "/endpoint/endpoint/validation" | "/endpoint/validation") => (A::ValidationCreate, Body(&["endpoint_id"])),
        ("PUT", path) if path.contains("/validation/{") => (A::ValidationUpdate, Path),
        ("DELETE", path) if path.contains("/validation/{") => (A::ValidationDelete, Path),
        ("POST", "/endpoint") => (A::EndpointCreate, of_endpoint),
        ("PUT", path) if path.starts_with("/endpoint/") => (A::EndpointUpdate, Path),
        ("DELETE", path) if path.starts_with("/endpoint/") => (A::EndpointDelete, Path),
        ("POST", "/subscription/subscribe") => (A::Subscribe, Subscription),
        ("POST", "/subscription/unsubscribe") => (A::Unsubscribe, Subscription),
        ("POST", "/routing") => (A::RoutingCreate, Body(&["client_key", "routing_name"])),
        ("PUT", "/routing/{client_key}") => (A::RoutingUpdate, Path),
        ("DELETE", "/routing/{client_key}") => (A::RoutingDelete, Path),
        ("POST", "/credit") => (A::CreditDefCreate, Body(&["api_credit_group"])),
        ("PUT", "/credit/{name}") => (A::CreditDefUpdate, Path),
        ("DELETE", "/credit/{name}") => (A::CreditDefDelete, Path),
        ("POST", "/credit/rotate-key") => (A::UserCreditsRotateKey, Body(&["api_credit_group"])),
        ("POST", "/credit/{name}") => (A::UserCreditsSave, Path),
        ("POST", "/tiers") => (A::TierCreate, Body(&["tier_id"])),
        ("PUT", "/tiers/{tier_id}") => (A::TierUpdate, Path),
        ("DELETE", "/tiers/{tier_id}") => (A::TierDelete, Path),
        ("POST", "/tiers/assignments" | "/tiers/trial/start") => (A::TierAssignmentSave, Body(&["user_id", "tier_id"])),
        ("POST", "/tiers/upgrade" | "/tiers/downgrade") => (A::TierAssignmentSave, Body(&["user_id", "new_tier_id"])),
        ("POST", "/tiers/temporary-upgrade") => (A::TierAssignmentSave, Body(&["user_id", "temp_tier_id"])),
        ("POST", "/tiers/payment/failure") => (A::TierAssignmentSave, Body(&["user_id"])),
        ("DELETE", "/tiers/assignments/{user_id}") => (A::TierAssignmentDelete, Path),
        ("POST", "/rate-limits") => (A::RateLimitRuleCreate, Body(&["rule_id"])),
        ("POST", "/rate-limits/{rule_id}/duplicate") => (A::RateLimitRuleCreate, Body(&["new_rule_id"])),
        ("POST", "/rate-limits/bulk/delete") => (A::RateLimitRuleDelete, Fixed("list")),
        ("POST", "/rate-limits/bulk/enable" | "/rate-limits/bulk/disable") => (A::RateLimitRuleUpdate, Fixed("list")),
        ("PUT", "/rate-limits/{rule_id}")
        | ("POST", "/rate-limits/{rule_id}/enable" | "/rate-limits/{rule_id}/disable") => {
            (A::RateLimitRuleUpdate, Path)
        }
        ("DELETE", "/rate-limits/{rule_id}") => (A::RateLimitRuleDelete, Path),
        ("POST", "/vault") => (A::VaultCreate, Body(&["key_name"])),
        ("PUT", "/vault/{key_name}") => (A::VaultUpdate, Path),
        ("DELETE", "/vault/{key_name}") => (A::VaultDelete, Path),
        ("PUT", "/security/settings") => (A::SecurityUpdateSettings, Fixed("security_settings")),
        ("POST", "/security/restart") => (A::SecurityRestart, Fixed("gateway")),
        ("POST", "/memory/dump") => (A::MemoryDump, Body(&["path"])),
        ("POST", "/memory/restore") => (A::MemoryRestore, Body(&["path"])),
        ("GET", "/config/export/all") => (A::ConfigExportAll, Fixed("all")),
        ("GET", "/config/export/apis") => (A::ConfigExportApis, Query("api_name", "list")),
        ("GET", "/config/export/roles") => (A::ConfigExportRoles, Query("role_name", "list")),
        ("GET", "/config/export/groups") => (A::ConfigExportGroups, Query("group_name", "list")),
        ("GET", "/config/export/routings") => (A::ConfigExportRoutings, Query("client_key", "list")),
        ("GET", "/config/export/endpoints") => (A::ConfigExportEndpoints, Query("api_name", "list")),
        ("POST", "/config/import") => (A::ConfigImport, Fixed("bulk")),
        ("POST", "/config/rollback") => (A::ConfigRollback, Fixed("latest")),
        ("POST", "/config/reload") => (A::ConfigReload, Fixed("gateway")),
        ("POST", "/tools/chaos/toggle") => (A::ChaosToggle, Body(&["backend"])),
        ("DELETE", "/api/caches") => (A::GatewayClearCaches, Fixed("all")),
        _ => return None,
    })
}

/// Is something of the body in the trail?
fn reads_body(action: Action, target: Target) -> bool {
    matches!(target, Target::Body(_) | Target::Subscription)
        || matches!(action, Action::UserCreditsSave | Action::RateLimitRuleUpdate | Action::RateLimitRuleDelete)
}

/// One thing is another action than the list.
fn of_one(action: Action) -> Action {
    match action {
        Action::ConfigExportApis => Action::ConfigExportApi,
        Action::ConfigExportRoles => Action::ConfigExportRole,
        Action::ConfigExportGroups => Action::ConfigExportGroup,
        Action::ConfigExportRoutings => Action::ConfigExportRouting,
        other => other,
    }
}

fn text(body: Option<&Value>, member: &str) -> Option<String> {
    body?.get(member)?.as_str().map(str::to_owned)
}

impl Target {
    fn of(self, params: &RawPathParams, query: Option<&str>, body: Option<&Value>) -> Option<String> {
        match self {
            Self::Path => Some(params.iter().map(|(_, value)| value).collect::<Vec<_>>().join("/")),
            Self::Body(members) => {
                let parts: Vec<String> = members.iter().filter_map(|member| text(body, member)).collect();
                // Paths of endpoints begin with a slash themselves.
                let parts: Vec<_> = parts.iter().map(|part| part.trim_start_matches('/')).collect();
                (!parts.is_empty()).then(|| parts.join("/"))
            }
            Self::Fixed(name) => Some(name.to_owned()),
            Self::Query(name, _) => {
                let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
                pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
            }
            Self::Subscription => {
                let (user, name, version) =
                    (text(body, "username")?, text(body, "api_name")?, text(body, "api_version")?);
                Some(format!("{user}:{name}/{version}"))
            }
        }
    }
}

/// What the target doesn't tell: names only, and not without end.
fn details(action: Action, body: Option<&Value>) -> Option<Value> {
    const MOST: usize = 100;
    let body = body?;
    match action {
        Action::UserCreditsSave => {
            let groups = body.get("users_credits")?.as_object()?.keys().take(MOST).cloned();
            Some(json!({ "groups": groups.collect::<Vec<_>>() }))
        }
        Action::RateLimitRuleUpdate | Action::RateLimitRuleDelete => {
            let ids = body.get("rule_ids")?.as_array()?.iter().take(MOST).cloned();
            Some(json!({ "rule_ids": ids.collect::<Vec<_>>() }))
        }
        _ => None,
    }
}

/// How it ended, in the words of the reference.
fn outcome(action: Action, status: StatusCode) -> Status {
    if !status.is_success() {
        return status.into();
    }
    match action {
        Action::SecurityRestart => "scheduled".into(),
        Action::SecurityUpdateSettings | Action::ConfigImport | Action::ConfigRollback | Action::GatewayClearCaches => {
            "success".into()
        }
        other if other.as_str().starts_with("config.export") => "success".into(),
        _ => status.into(),
    }
}

/// Answers a call, writes what became of it, and tells with the answer who called.
pub(super) async fn audited(route: MatchedPath, params: RawPathParams, mut request: Request, next: Next) -> Response {
    let entry = entry(request.method(), route.as_str());
    let trail = Trail::new(entry.is_some_and(|(action, target)| reads_body(action, target)));
    request.extensions_mut().insert(trail.clone());
    let mut response = match entry {
        Some(entry) => written(entry, &trail, &params, request, next).await,
        None => next.run(request).await,
    };
    let is_success = response.status().is_success();
    let noted = trail.noted();
    if let Some(name) = noted.actor.as_ref().or(noted.account.as_ref().filter(|_| is_success)) {
        response.extensions_mut().insert(CallerName(Arc::clone(name)));
    }
    drop(noted);
    response
}

async fn written(
    (action, target): (Action, Target),
    trail: &Trail,
    params: &RawPathParams,
    request: Request,
    next: Next,
) -> Response {
    let address: Option<IpAddr> = request.extensions().get::<ClientAddress>().map(|client| client.effective);
    let id = request.extensions().get::<RequestId>().cloned();
    let (path, query) = (request.uri().path().to_owned(), request.uri().query().map(str::to_owned));
    let response = next.run(request).await;

    let (mut noted, status) = (trail.noted(), response.status());
    if noted.actor.is_none() && !status.is_success() && action != Action::AuthLogin {
        return response;
    }
    let body = noted.body.take().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let named = target.of(params, query.as_deref(), body.as_ref());
    let action = match (action, &named) {
        (Action::AuthLogin, _) if !status.is_success() => Action::AuthLoginFailed,
        (Action::AuthLogout, Some(_)) => Action::AuthRevoke,
        (action, Some(_)) if matches!(target, Target::Query(..)) => of_one(action),
        (action, _) => action,
    };
    let account = noted.account.as_deref().unwrap_or_default();
    let actor = noted.actor.as_deref().unwrap_or(if status.is_success() { account } else { "" });
    let named = named.unwrap_or_else(|| match target {
        Target::Query(_, other) => other.to_owned(),
        _ => String::new(),
    });
    // A session is the caller's own.
    let named = [&*named, account, actor].into_iter().find(|name| !name.is_empty()).unwrap_or_default();
    let id = id.as_ref().and_then(|id| id.0.to_str().ok());
    let event = Event::new(action, actor, named, outcome(action, status)).from(address, &path, id);
    let event = match details(action, body.as_ref()) {
        Some(details) => event.details(details),
        None => event,
    };
    event.write();
    drop(noted);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls that neither change anything nor take much out.
    const HARMLESS: [(&str, &str); 8] = [
        ("POST", "/platform/api/{api_name}/{api_version}/wsdl/refresh"),
        ("POST", "/platform/wsdl/parse"),
        ("POST", "/platform/api/{api_name}/{api_version}/graphql/schema/refresh"),
        ("POST", "/platform/api/{api_name}/{api_version}/openapi/refresh"),
        ("POST", "/platform/openapi/parse"),
        ("POST", "/platform/tools/cors/check"),
        ("POST", "/platform/tiers/compare"),
        ("POST", "/platform/quota/usage/export"),
    ];

    #[test]
    fn whatever_changes_something_is_in_the_trail() {
        let document = crate::platform::document();
        let mut seen = 0;
        for (path, operations) in document["paths"].as_object().unwrap() {
            for method in operations.as_object().unwrap().keys() {
                let method = method.to_uppercase();
                if method == "GET" || HARMLESS.contains(&(&*method, path)) {
                    continue;
                }
                assert!(entry(&method.parse().unwrap(), path).is_some(), "{method} {path} is not in the trail");
                seen += 1;
            }
        }
        assert!(seen > 30, "{seen}");
    }
}
