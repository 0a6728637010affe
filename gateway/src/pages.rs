//! The reference pages of `docs/` that speak of this crate, and the checks that they speak of all of it.
//!
//! `make generate` writes them. What the code can't tell, such as what to do about a code, stands in the tables here;
//! a test compares the tables with the sources.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use crate::telemetry::metrics::Metrics;

/// Code, statuses, when, and what to do.
const CODES: &[(&str, &str, &str, &str)] = &[
    (
        "API010",
        "403",
        "The caller's address is not on the API's allow list.",
        "Add it to `spec.access.ip.allow`; behind a proxy, set which proxies are trusted.",
    ),
    ("API011", "403", "The caller's address is on the API's deny list.", "Remove it from `spec.access.ip.deny`."),
    ("AUTH001", "400", "Sign-in without e-mail address or password.", "Send both, as JSON."),
    ("AUTH002", "400", "Sign-in with a wrong e-mail address or password; nobody is told which.", "Check both."),
    ("AUTH003", "401", "The session can't be renewed: nobody is signed in.", "Sign in again."),
    ("AUTH004", "400", "The body of a sign-in is not JSON.", "Send JSON with `Content-Type: application/json`."),
    (
        "AUTH005",
        "401, 503",
        "Nobody is signed in, or that can't be looked up now.",
        "Sign in again; with 503, see to the stores.",
    ),
    ("AUTH007", "400", "The account is disabled.", "Have an administrator enable it."),
    ("AUTH008", "403", "The password must be changed first.", "Change the password, then sign in."),
    ("AUTH900", "403", "The caller lacks the permission `manage_auth`.", "Give the caller's role the permission."),
    (
        "DEF409",
        "409",
        "The definition is somebody else's: the message names whom, or that the platform API may write none.",
        "Change it where it comes from; see `spec.platform.definitions` and docs/operations.md.",
    ),
    (
        "DEF503",
        "503",
        "The definition can't be written: the Kubernetes API server is away, or does not let this gateway write.",
        "Try again; if it stays, see the gateway's log and its RoleBindings.",
    ),
    (
        "DEF504",
        "504",
        "The definition is stored in the cluster, but this process does not serve it yet.",
        "See the object's conditions: it may be refused, or not be selected by `spec.apis`.",
    ),
    ("GRP001", "400", "There is a group of this name.", "Choose another name, or change the group."),
    ("GRP003", "400, 404", "There is no such group.", "See `GET /platform/group/all`."),
    ("GRP004", "400", "A group's name can't be changed.", "Add another group."),
    ("GRP006", "400", "The body changes nothing.", "Name what to change."),
    ("GRP008", "403", "The caller lacks the permission `manage_groups`.", "Give the caller's role the permission."),
    ("GRP009", "403", "The caller lacks the permission `manage_groups`.", "Give the caller's role the permission."),
    ("GRP010", "403", "The caller lacks the permission `manage_groups`.", "Give the caller's role the permission."),
    (
        "GTW001",
        "404",
        "No API with this name and version is served, or it has no server.",
        "Compare the path with `spec.name` and `spec.version`; see the object's conditions.",
    ),
    ("GTW003", "404", "The API has no endpoint with this method and path.", "Add it to `spec.endpoints`."),
    ("GTW005", "404", "The upstream answered 404.", "Ask the upstream; the call reached it."),
    (
        "GTW006",
        "500",
        "The upstream could not be called, or broke off.",
        "Look at the gateway's log under the request id: it names the cause.",
    ),
    ("GTW010", "504", "The upstream took too long.", "See `HTTP_*_TIMEOUT` and the API's own timeouts."),
    (
        "GTW011",
        "400, 431",
        "The request has no single reading: ambiguous path, bad Host, too many or too large header fields.",
        "Correct the request; nothing of it was forwarded.",
    ),
    ("GTW012", "403", "The API is switched off.", "Set `spec.active` or leave it out."),
    (
        "GTW014",
        "403",
        "None of the caller's roles is admitted.",
        "Give the user a role of `spec.access.roles`, or add the role there.",
    ),
    (
        "GTW503",
        "503",
        "The API is defined, and can't be served: invalid, in conflict with an older one, or a role it names is missing.",
        "The message names the field; so do the object's conditions.",
    ),
    (
        "GTW998",
        "401, 500, 503",
        "Nobody is signed in, or that can't be looked up now.",
        "Sign in again; see to the stores.",
    ),
    ("GTW999", "500, 503", "Something went wrong in the gateway.", "Look at the gateway's log under the request id."),
    (
        "IP_RATE_LIMIT",
        "429",
        "Too many sign-ins from one address.",
        "Wait as long as `Retry-After` says; see `LOGIN_IP_RATE_*`.",
    ),
    ("PAG001", "400", "There is no such page, or its size is out of bounds.", "See `MAX_PAGE_SIZE`."),
    ("REQ001", "413", "The body is larger than allowed.", "See `MAX_BODY_SIZE_BYTES` and the limits per protocol."),
    ("REQ004", "400", "The body ended early or is malformed.", "Send what `Content-Length` or the chunks announce."),
    ("REQ005", "408", "The body stopped coming.", "Send it without long pauses; see `HTTP_WRITE_TIMEOUT`."),
    ("ROLE001", "400", "There is a role of this name.", "Choose another name, or change the role."),
    ("ROLE004", "400, 404", "There is no such role.", "See `GET /platform/role/all`."),
    ("ROLE005", "400", "A role's name can't be changed.", "Add another role."),
    ("ROLE007", "400", "The body changes nothing.", "Name what to change."),
    ("ROLE009", "403", "The caller lacks the permission `manage_roles`.", "Give the caller's role the permission."),
    ("ROLE010", "403", "The caller lacks the permission `manage_roles`.", "Give the caller's role the permission."),
    ("ROLE011", "403", "The caller lacks the permission `manage_roles`.", "Give the caller's role the permission."),
    ("ROLE013", "403", "Only administrators add the administrators' role.", "Ask one."),
    ("ROLE014", "403", "Only administrators change an administrators' role.", "Ask one."),
    ("ROLE016", "403", "Only administrators delete an administrators' role.", "Ask one."),
    ("USR001", "400", "The name or the e-mail address is in use.", "Choose another one."),
    ("USR002", "404", "There is no such user.", "See `GET /platform/user/all`."),
    ("USR004", "400", "A user's name can't be changed.", "Add another user."),
    (
        "USR005",
        "400",
        "The password is too simple.",
        "Take 16 characters or more: upper and lower case, digits, others.",
    ),
    ("USR006", "403", "The caller lacks the permission `manage_users`.", "Give the caller's role the permission."),
    ("USR007", "403", "The caller lacks the permission `manage_users`.", "Give the caller's role the permission."),
    ("USR008", "403", "The caller lacks the permission `manage_users`.", "Give the caller's role the permission."),
    ("USR012", "403", "Only administrators change administrators.", "Ask one."),
    ("USR013", "403", "Only administrators make administrators.", "Ask one."),
    ("USR014", "403", "Only administrators delete administrators.", "Ask one."),
    ("USR015", "403", "Only administrators add administrators.", "Ask one."),
    ("USR016", "400", "A user has ten custom attributes at the most.", "Replace one."),
    ("USR020", "403", "Of the user `admin` only limits can be changed.", "Use another administrator for the rest."),
    ("USR021", "403", "The user `admin` can't be deleted.", "Revoke its tokens, if need be."),
    ("USR022", "403", "The password of the user `admin` is that of the settings.", "See `DOORMAN_ADMIN_PASSWORD`."),
    ("USR023", "403", "Some members only `manage_users` may change.", "Leave out the members that the message names."),
    ("VAL001", "422", "The body does not have the expected fields.", "The message names the field."),
];

/// Method, path, port, who may call, what it does; the routes of the platform API say so themselves.
const ROUTES: &[(&str, &str, &str, &str, &str)] = &[
    (
        "any",
        "/api/rest/{name}/{version}/{path}",
        "traffic",
        "as the API says",
        "Calls a REST API. `OPTIONS` is answered with 204 by the gateway.",
    ),
    ("GET", "/api/health", "traffic", "anyone", "Tells that the gateway answers."),
    ("GET", "/metrics", "admin", "the cluster", "Metrics for Prometheus, see [metrics](metrics.md)."),
    (
        "GET",
        "/revision",
        "admin",
        "the cluster",
        "What the process serves and what it rejects; with `?watch=true` one line for each change.",
    ),
    ("GET", "/livez", "admin", "the cluster", "The admin port answers."),
];

/// Files and contents.
fn pages() -> [(&'static str, String); 3] {
    let mut errors = page(
        "Error codes",
        "Refusals are JSON: `error_code` and `error_message`. The request id of the headers `X-Request-ID` and `request_id` finds\nthe cause in the log.",
    );
    errors.push_str("| Code | Status | When | What to do |\n|---|---|---|---|\n");
    for (code, status, when, what) in CODES {
        let _ = writeln!(errors, "| `{code}` | {status} | {when} | {what} |");
    }
    let mut routes = page(
        "Routes",
        "The traffic port is `PORT` (5001), the admin port `DOORMAN_ADMIN_PORT` (9090). The admin port is for the cluster: the\noperator's NetworkPolicy lets only the operator and the namespaces it is told reach it.",
    );
    routes.push_str("| Method | Path | Port | Who | What |\n|---|---|---|---|---|\n");
    for (method, path, port, who, what) in ROUTES {
        let _ = writeln!(routes, "| {method} | `{path}` | {port} | {who} | {what} |");
    }
    routes.push_str(
        "\n## Platform API\n\nOn the traffic port. `GET /platform/openapi.json` tells more: bodies, answers and codes (OpenAPI 3.1).\n\n\
         | Method | Path | Who | What |\n|---|---|---|---|\n",
    );
    let document = crate::platform::document();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let who = match operation["security"][0]["token"].as_array() {
                None => "anyone".to_owned(),
                Some(scopes) if scopes.is_empty() => "signed in".to_owned(),
                Some(scopes) => {
                    scopes.iter().map(|scope| format!("`{}`", scope.as_str().unwrap())).collect::<Vec<_>>().join(", ")
                }
            };
            let (method, what) = (method.to_uppercase(), operation["summary"].as_str().unwrap_or_default());
            let _ = writeln!(routes, "| {method} | `{path}` | {who} | {what} |");
        }
    }
    let mut metrics = page(
        "Metrics of the gateway",
        "`GET /metrics` of the admin port answers in OpenMetrics 1.0: counters end in `_total`, histograms have `_bucket`, `_sum` and\n`_count`. Calls marked as tests (`X-Is-Test`, `X-Doorman-Test`, `X-Test-Request`) are not counted.",
    );
    metrics.push_str("| Metric | Type | Labels | Meaning |\n|---|---|---|---|\n");
    let counted = Metrics::default();
    counted.request(200, std::time::Duration::ZERO);
    let text = counted.render();
    for line in text.lines() {
        let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) else { continue };
        let type_ = text.lines().find_map(|line| line.strip_prefix(&format!("# TYPE {name} "))).unwrap_or_default();
        let labels = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.split_once('{')?.1.split_once('=').map(|(label, _)| label));
        let labels = labels.filter(|label| *label != "le").map(|label| format!("`{label}`")).unwrap_or_default();
        let _ = writeln!(metrics, "| `{name}` | {type_} | {labels} | {help} |");
    }
    [("errors.md", errors), ("routes.md", routes), ("metrics.md", metrics)]
}

fn page(title: &str, intro: &str) -> String {
    format!(
        "<!-- Generated by `make generate` from gateway/src/pages.rs and the code; do not edit. -->\n\n# {title}\n\n{intro}\n\n"
    )
}

#[test]
fn the_docs_pages_are_what_the_code_says() {
    for (name, text) in pages() {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
        if std::env::var_os("UPDATE_DOCS").is_some() {
            fs::write(&path, &text).unwrap();
        }
        assert!(
            fs::read_to_string(&path).unwrap_or_default() == text,
            "run `make generate`: docs/{name} is not up to date"
        );
    }
}

/// The sources that serve, one text.
fn sources(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = entry.file_name().unwrap().to_string_lossy().into_owned();
        if entry.is_dir() {
            text.push_str(&sources(&entry));
        } else if entry.extension().is_some_and(|end| end == "rs") && !["tests.rs", "pages.rs"].contains(&name.as_str())
        {
            text.push_str(fs::read_to_string(&entry).unwrap().split("\n#[cfg(test)]").next().unwrap());
        }
    }
    text
}

fn all_sources() -> String {
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

#[test]
fn every_error_code_is_on_the_page() {
    let text = all_sources();
    let is_code = |word: &&str| {
        let letters = word.trim_end_matches(|c: char| c.is_ascii_digit());
        *word == "IP_RATE_LIMIT"
            || word.len() == letters.len() + 3
                && (3..=4).contains(&letters.len())
                && letters.chars().all(|c| c.is_ascii_uppercase())
    };
    let used: BTreeSet<&str> = text.split('"').filter(is_code).collect();
    let listed: BTreeSet<&str> = CODES.iter().map(|(code, ..)| *code).collect();
    assert_eq!(used, listed);
}

#[test]
fn every_route_is_on_the_page() {
    let text = all_sources();
    let routed = text.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap());
    let routed: BTreeSet<&str> = routed.filter(|path| !path.starts_with("/platform/")).collect();
    let by_hand = ["/api/rest/{name}/{version}/{path}", "/api/health"];
    let listed: BTreeSet<&str> =
        ROUTES.iter().map(|(_, path, ..)| *path).filter(|path| !by_hand.contains(path)).collect();
    assert_eq!(routed, listed);
}
