//! The reference pages of `docs/` that speak of this crate, and the checks that they speak of all of it.
//!
//! `make generate` writes them. What the code can't tell, such as what to do about a code, stands in the tables here;
//! a test compares the tables with the sources.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use crate::telemetry::metrics::Metrics;

mod bodies;

/// Code, statuses, when, and what to do.
const CODES: &[(&str, &str, &str, &str)] = &[
    (
        "ANALYTICS001",
        "403",
        "The caller lacks the permission `view_analytics`.",
        "Give the caller's role the permission.",
    ),
    (
        "ANALYTICS400",
        "400",
        "The time that is asked about ends before it starts.",
        "Send `start_ts` no later than `end_ts`.",
    ),
    (
        "ANALYTICS404",
        "404",
        "The API or the user has no calls in the time that is asked about.",
        "Ask about another time.",
    ),
    ("API001", "404", "There is no API of this name and version.", "See `GET /platform/api/all`."),
    ("API003", "400", "There is no API of this name and version.", "See `GET /platform/api/all`."),
    ("API005", "400", "Name and version of an API can't be changed.", "Add another API."),
    ("API006", "400", "The body changes nothing.", "Name what to change."),
    ("API007", "403", "The caller lacks the permission `manage_apis`.", "Give the caller's role the permission."),
    ("API008", "403", "The caller lacks the permission `manage_apis`.", "Give the caller's role the permission."),
    (
        "API010",
        "403",
        "The caller's address is not on the API's allow list.",
        "Add it to `spec.access.ip.allow`; behind a proxy, set which proxies are trusted.",
    ),
    ("API011", "403", "The caller's address is on the API's deny list.", "Remove it from `spec.access.ip.deny`."),
    ("API013", "400", "A public API can't charge credits: there is nobody to charge.", "Switch one of the two off."),
    (
        "API014",
        "400",
        "The weights of the API's servers don't fit them.",
        "Give each server one weight, 0 to 100, not all 0; or `[]` to have all called alike.",
    ),
    (
        "API015",
        "400",
        "What was sent would take the API out of service: a server, address, name, header or path in it means nothing.",
        "The message names the field, as a manifest has it, and what is right.",
    ),
    (
        "API_AUTH",
        "401, 500, 503",
        "Nobody is signed in, or that can't be looked up now.",
        "Sign in again; see to the stores.",
    ),
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
    (
        "AUTH006",
        "400",
        "An e-mail address that gives no user name.",
        "Register with one of which 3 to 50 characters stand before the `@`.",
    ),
    ("AUTH007", "400", "The account is disabled.", "Have an administrator enable it."),
    (
        "AUTH008",
        "403",
        "The password must be changed first.",
        "Have an administrator call `PUT /platform/user/{username}/update-password`.",
    ),
    (
        "AUTH009",
        "429",
        "Too many failed sign-ins with one name or address.",
        "Wait as long as `Retry-After` says; see `LOGIN_ACCOUNT_RATE_*`.",
    ),
    (
        "AUTH010",
        "403",
        "Registration is switched off.",
        "Ask an administrator for an account; see `REGISTRATION_ENABLED`.",
    ),
    ("AUTH900", "403", "The caller lacks the permission `manage_auth`.", "Give the caller's role the permission."),
    (
        "AUTHZ001",
        "403",
        "The caller lacks the permission: `manage_endpoints` for imports, else `manage_apis`.",
        "Give the caller's role the permission.",
    ),
    (
        "END001",
        "400",
        "There is such an endpoint, or clients reach another one by this path.",
        "Change the existing one.",
    ),
    ("END002", "400", "There is no API of this name and version.", "Add the API first."),
    (
        "END003",
        "400",
        "A path of the endpoint can't be served: the message says why.",
        "Write whole segments, `{name}` for one that varies.",
    ),
    ("END004", "400", "There is no such endpoint.", "See `GET /platform/endpoint/{api_name}/{api_version}`."),
    ("END005", "400", "The API has no endpoints, or there is no such API.", "Add one."),
    (
        "END006",
        "400",
        "Method, API and path of an endpoint can't be changed, or clients reach another one by this path.",
        "Add another endpoint.",
    ),
    ("END007", "400", "The body changes nothing.", "Name what to change."),
    ("END008", "400", "There is no such endpoint.", "See `GET /platform/endpoint/{api_name}/{api_version}`."),
    ("END010", "403", "The caller lacks the permission `manage_endpoints`.", "Give the caller's role the permission."),
    ("END011", "403", "The caller lacks the permission `manage_endpoints`.", "Give the caller's role the permission."),
    ("END012", "403", "The caller lacks the permission `manage_endpoints`.", "Give the caller's role the permission."),
    (
        "END013",
        "400, 403",
        "No endpoint is named, or the caller lacks the permission `manage_endpoints`.",
        "Give `endpoint_id`, or the caller's role the permission.",
    ),
    (
        "END014",
        "400, 403",
        "The schema has no rules, or the caller lacks the permission `manage_endpoints`.",
        "Give rules, or the caller's role the permission.",
    ),
    (
        "END015",
        "400, 403",
        "There is no such endpoint, or the caller lacks the permission `manage_endpoints`.",
        "Look up the `endpoint_id`, or give the caller's role the permission.",
    ),
    ("END017", "400", "The endpoint has rules already.", "Change them."),
    ("END018", "400", "The endpoint has no rules.", "Add them."),
    ("END021", "400", "The schema has no rules.", "Give rules, or switch the validation off."),
    ("END022", "400", "There is no such endpoint.", "Look up the `endpoint_id`."),
    (
        "END024",
        "400",
        "The weights of the endpoint's servers don't fit them.",
        "Give each server one weight, 0 to 100, not all 0; or `[]` to have all called alike.",
    ),
    (
        "GEN001",
        "401, 404, 500, 503",
        "Nobody is signed in, the user lacks the group, or there is no such user or API.",
        "The message says which.",
    ),
    (
        "GEN002",
        "401, 404, 500, 503",
        "Nobody is signed in, the user lacks the group, or there is no such user or API.",
        "The message says which.",
    ),
    ("CFG001", "403", "The caller lacks the permission `manage_gateway`.", "Give the caller's role the permission."),
    ("CFG002", "403", "The caller lacks the permission `manage_apis`.", "Give the caller's role the permission."),
    ("CFG003", "403", "The caller lacks the permission `manage_roles`.", "Give the caller's role the permission."),
    ("CFG004", "403", "The caller lacks the permission `manage_groups`.", "Give the caller's role the permission."),
    ("CFG005", "403", "The caller lacks the permission `manage_routings`.", "Give the caller's role the permission."),
    (
        "CFG006",
        "403",
        "The caller lacks the permission `manage_gateway`, or `manage_roles` where roles are imported or brought back.",
        "Give the caller's role the permission.",
    ),
    ("CFG007", "403", "The caller lacks the permission `manage_endpoints`.", "Give the caller's role the permission."),
    ("CFG404", "404", "There is no such API, or no import to take back.", "See `GET /platform/config/export/apis`."),
    ("CFG405", "404", "There is no such role.", "See `GET /platform/config/export/roles`."),
    ("CFG406", "404", "There is no such group.", "See `GET /platform/config/export/groups`."),
    ("CFG407", "404", "There is no such routing.", "See `GET /platform/config/export/routings`."),
    (
        "CRD001",
        "400, 403",
        "There is a definition of this group, or the caller lacks the permission `manage_credits`.",
        "Change the existing one, or give the caller's role the permission.",
    ),
    ("CRD002", "403", "The caller lacks the permission `manage_credits`.", "Give the caller's role the permission."),
    (
        "CRD003",
        "400, 403",
        "A credit group's name can't be changed, or the caller lacks the permission `manage_credits`.",
        "Give the caller's role the permission.",
    ),
    ("CRD004", "400", "There is no definition of this credit group.", "See `GET /platform/credit/defs`."),
    ("CRD007", "400", "There is no definition of this credit group.", "See `GET /platform/credit/defs`."),
    ("CRD009", "400", "A credit group can't have this name.", "The message says why; choose another name."),
    ("CRD010", "400", "A key or its header is missing or can't be sent.", "The message says why."),
    ("CRD014", "400", "The user of the body is not the user of the path.", "Name the same user in both."),
    (
        "CRD017",
        "404",
        "There is no such user, or the user has no credits.",
        "See `GET /platform/user/all` and `GET /platform/credit/all`.",
    ),
    (
        "CRD018",
        "500",
        "A user's key was encrypted with another key than those that are set.",
        "Set the earlier key as `TOKEN_ENCRYPTION_KEY_PREVIOUS`, or save the user's credits again.",
    ),
    ("CRD020", "400", "No credit group is named.", "Give `api_credit_group`."),
    ("CRD021", "404", "There is no definition of this credit group.", "See `GET /platform/credit/defs`."),
    (
        "CRD500",
        "500",
        "The key that pays for calls upstream can't be decrypted, or is no header value.",
        "Check `TOKEN_ENCRYPTION_KEY` and save the credit definition (or the user's key) again.",
    ),
    (
        "CRD503",
        "503",
        "Credits can't be charged: the document store does not answer. Nothing was sent upstream.",
        "See to the store; try again after `Retry-After`.",
    ),
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
    ("GQL001", "404", "The API has no servers that could be asked.", "Give the API servers."),
    (
        "GQL002",
        "502",
        "No server of the API tells its schema: it does not answer introspection with 200.",
        "Look at the gateway's log: it names the server and the cause. See `api_graphql_schema_url`.",
    ),
    (
        "GQL003",
        "404",
        "The schema was not asked for, or the API has changed since.",
        "Call `GET /platform/api/{api_name}/{api_version}/graphql/schema` first.",
    ),
    ("GQL999", "500", "Something went wrong in the gateway.", "Look at the gateway's log under the request id."),
    ("GRP001", "400", "There is a group of this name.", "Choose another name, or change the group."),
    ("GRP003", "400, 404", "There is no such group.", "See `GET /platform/group/all`."),
    ("GRP004", "400", "A group's name can't be changed.", "Add another group."),
    ("GRP006", "400", "The body changes nothing.", "Name what to change."),
    ("GRP008", "403", "The caller lacks the permission `manage_groups`.", "Give the caller's role the permission."),
    ("GRP009", "403", "The caller lacks the permission `manage_groups`.", "Give the caller's role the permission."),
    ("GRP010", "403", "The caller lacks the permission `manage_groups`.", "Give the caller's role the permission."),
    ("GRPC001", "404", "The API has no servers.", "Give the API servers."),
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
        "GTW008",
        "401, 403",
        "The caller has no credit left for the API, or (clearing caches) lacks the permission `manage_gateway`.",
        "Save credits for the user, or give the caller's role the permission.",
    ),
    (
        "GTW011",
        "400, 431",
        "The request has no single reading (ambiguous path, bad Host, too many or too large header fields), or its body is \
         not what the endpoint demands.",
        "The message says what is wrong; nothing of the request was forwarded.",
    ),
    ("GTW012", "403", "The API is switched off.", "Set `spec.active` or leave it out."),
    ("GTW013", "403", "The caller lacks the permission `manage_gateway`.", "Give the caller's role the permission."),
    (
        "GTW014",
        "403",
        "None of the caller's roles is admitted.",
        "Give the user a role of `spec.access.roles`, or add the role there.",
    ),
    ("GTW015", "403", "WebSocket is not served.", "Call without `Upgrade`; see `WEBSOCKETS_ENABLED`."),
    ("GTW401", "401", "Nobody is signed in.", "Sign in, and send the token."),
    (
        "GTW503",
        "503",
        "The API is defined, and can't be served: invalid, in conflict with an older one, or a role or Secret it names is missing.",
        "The object's conditions and the gateway's log name the field; callers are not told, since anybody may call.",
    ),
    (
        "GTW998",
        "401, 500, 503",
        "Nobody is signed in, or that can't be looked up now.",
        "Sign in again; see to the stores.",
    ),
    (
        "GTW999",
        "500, 503",
        "Something went wrong in the gateway, or a store is away. With 503 and `Upstream circuit open`: the circuit breakers of all servers that the call could go to are open.",
        "Look at the gateway's log under the request id; see to the stores. With an open breaker, see to the upstream and try again after `Retry-After`.",
    ),
    (
        "IP_RATE_LIMIT",
        "429",
        "Too many sign-ins or registrations from one address.",
        "Wait as long as `Retry-After` says; see `LOGIN_IP_RATE_*` and `REGISTER_IP_RATE_*`.",
    ),
    (
        "LIM503",
        "503",
        "What is limited can't be counted: Redis is away and `DOORMAN_LIMITS_FAIL_MODE` is `Closed`.",
        "See to Redis; try again after `Retry-After`.",
    ),
    ("LOG001", "403", "The caller lacks the permission `view_logs`.", "Give the caller's role the permission."),
    ("LOG002", "403", "The caller lacks the permission `view_logs`.", "Give the caller's role the permission."),
    ("LOG003", "403", "The caller lacks the permission `export_logs`.", "Give the caller's role the permission."),
    ("LOG004", "403", "The caller lacks the permission `export_logs`.", "Give the caller's role the permission."),
    ("LOG005", "403", "The caller lacks the permission `view_logs`.", "Give the caller's role the permission."),
    ("MON001", "403", "The caller lacks the permission `manage_gateway`.", "Give the caller's role the permission."),
    ("MON002", "403", "The caller lacks the permission `manage_gateway`.", "Give the caller's role the permission."),
    (
        "MON003",
        "400",
        "The report's times can't be read, or end before they start.",
        "Write `YYYY-MM-DD` or `YYYY-MM-DDTHH:MM`.",
    ),
    (
        "OPENAPI001",
        "404",
        "The API does not say where its OpenAPI document is.",
        "Set `api_openapi_url`, or `spec.openapiUrl`.",
    ),
    ("OPENAPI002", "404", "The API has no servers that could be asked.", "Give the API servers."),
    (
        "OPENAPI003",
        "404, 502",
        "No server of the API answers with 200 and an OpenAPI document of at most 10 MiB.",
        "Look at the gateway's log: it names the server and the cause.",
    ),
    ("OPENAPI004", "400", "What was sent is no OpenAPI document.", "Send an object, as JSON or YAML."),
    ("OPENAPI999", "500", "Something went wrong in the gateway.", "Look at the gateway's log under the request id."),
    ("PAG001", "400", "There is no such page, or its size is out of bounds.", "See `MAX_PAGE_SIZE`."),
    ("MEM001", "400", "Only memory mode has memory dumps.", "Back up MongoDB instead."),
    ("MEM002", "400", "There is no key to encrypt dumps with.", "Set `MEM_ENCRYPTION_KEY`."),
    ("MEM003", "404", "There is no such dump.", "Name the file that the dump was answered with."),
    (
        "RATE_LIMIT_EXCEEDED",
        "429",
        "The caller's tier, or a rate limit rule, allows no more calls in this window.",
        "Wait as long as `Retry-After` says, or have another tier assigned.",
    ),
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
    (
        "ROLE014",
        "403",
        "Only administrators change an administrators' role, and no import takes permissions from that of `admin`.",
        "Ask one, or leave the role out of the import.",
    ),
    ("ROLE016", "403", "Only administrators delete an administrators' role.", "Ask one."),
    ("RTG001", "400", "There is a routing of this key.", "Choose another key, or change the routing."),
    ("RTG002", "400", "The key can't be sent, or a server can't be called.", "The message says which and why."),
    ("RTG004", "400", "There is no such routing.", "See `GET /platform/routing/all`."),
    ("RTG005", "400", "A routing's key can't be changed.", "Add another routing."),
    ("RTG006", "400", "A server can't be called.", "The message says which and why."),
    ("RTG007", "400", "The body changes nothing.", "Name what to change."),
    ("RTG009", "403", "The caller lacks the permission `manage_routings`.", "Give the caller's role the permission."),
    ("RTG010", "403", "The caller lacks the permission `manage_routings`.", "Give the caller's role the permission."),
    ("RTG011", "403", "The caller lacks the permission `manage_routings`.", "Give the caller's role the permission."),
    ("RTG012", "403", "The caller lacks the permission `manage_routings`.", "Give the caller's role the permission."),
    ("RTG013", "403", "The caller lacks the permission `manage_routings`.", "Give the caller's role the permission."),
    (
        "RTG014",
        "400",
        "The weights of the routing's servers don't fit them.",
        "Give each server one weight, 0 to 100, not all 0; or `[]` to have all called alike.",
    ),
    ("SEC001", "403", "The caller lacks the permission `manage_security`.", "Give the caller's role the permission."),
    ("SEC002", "403", "The caller lacks the permission `manage_security`.", "Give the caller's role the permission."),
    ("SEC003", "403", "The caller lacks the permission `manage_security`.", "Give the caller's role the permission."),
    (
        "SEC004",
        "403, 409",
        "The caller lacks the permission `manage_security`; with 409, nobody is known to start the process again.",
        "Give the caller's role the permission; write the process's id to `PID_FILE`.",
    ),
    (
        "SEC010",
        "403",
        "The caller's address is not on the gateway's allow list.",
        "Add it to `ip_whitelist` of the security settings; behind a proxy, set which proxies are trusted.",
    ),
    (
        "SEC011",
        "403",
        "The caller's address is on the gateway's deny list.",
        "Remove it from `ip_blacklist` of the security settings.",
    ),
    ("SUB004", "400", "The user has subscribed to the API.", "Nothing is to be done."),
    ("SUB006", "400", "The user has not subscribed to the API.", "Nothing is to be done."),
    (
        "SUB009",
        "403",
        "The caller lacks the permission `manage_subscriptions`.",
        "Give the caller's role the permission.",
    ),
    (
        "SUB010",
        "403",
        "The caller lacks the permission `manage_subscriptions`.",
        "Give the caller's role the permission.",
    ),
    (
        "SUB011",
        "403",
        "The caller lacks the permission `manage_subscriptions`.",
        "Give the caller's role the permission.",
    ),
    ("TIER001", "403", "The caller lacks the permission `manage_tiers`.", "Give the caller's role the permission."),
    (
        "TLS001",
        "403",
        "The caller lacks the permission `manage_security`, or `manage_gateway` for outages.",
        "Give the caller's role the permission.",
    ),
    ("TLS002", "400", "There is no such store.", "Name `redis` or `mongo`."),
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
    (
        "VAL001",
        "422",
        "The body or the query does not have the expected form, or a value can't be applied or kept.",
        "The message names the member where a value can't be applied or kept. It is `Validation Error` alone where a member is missing or of the wrong kind: compare with `GET /platform/openapi.json`; with `LOG_LEVEL=DEBUG` the log tells which.",
    ),
    ("WSDL001", "404", "The API does not say where its WSDL is.", "Set `api_wsdl_url`, or `spec.soap.wsdlUrl`."),
    ("WSDL002", "404", "The API has no servers that could be asked.", "Give the API servers, or the WSDL a URL."),
    (
        "WSDL003",
        "404, 502",
        "Nobody answers with 200 and a document of at most 10 MiB where the WSDL should be; importing, that it is none too.",
        "Look at the gateway's log: it names the server and the cause.",
    ),
    ("WSDL004", "400", "What was sent, or fetched, is no WSDL 1.1.", "The message says why."),
    ("WSDL999", "500", "Something went wrong in the gateway.", "Look at the gateway's log under the request id."),
    ("VAULT001", "500", "There is no key for vault entries.", "Set `VAULT_KEY`."),
    ("VAULT002", "404", "The caller's user is gone.", "Sign in as another."),
    ("VAULT003", "400", "The caller has no e-mail address, which the key is made of.", "Give the user one."),
    ("VAULT004", "409", "The caller has an entry of this name.", "Choose another name, or delete the entry."),
    ("VAULT005", "500", "The value could not be encrypted.", "Look at the gateway's log under the request id."),
    ("VAULT007", "404", "The caller has no entry of this name.", "See `GET /platform/vault`."),
    ("VAULT009", "400", "The caller's vault is full: 1000 entries, 1 MiB of encrypted values.", "Delete entries."),
];

/// What stands in the place of a code where a refusal has none, statuses, when, and what to do.
const TEXTS: &[(&str, &str, &str, &str)] = &[
    (
        "Unauthorized",
        "401",
        "There is no token, or one that does not count: expired, revoked, of an unknown key, of a user who is gone or inactive.",
        "Sign in, and send the token. A cookie `access_token_cookie` comes before the header `Authorization`.",
    ),
    (
        "Invalid CSRF token",
        "401",
        "A call of `/platform` over https does not repeat the CSRF token of the sign-in.",
        "Send the value of the cookie `csrf_token` as `X-CSRF-Token`.",
    ),
    (
        "You are not subscribed to this resource",
        "403",
        "The caller has not subscribed to the API; administrators need to as well.",
        "Call `POST /platform/subscription/subscribe`; see `ENFORCE_ADMIN_SUBSCRIPTION`.",
    ),
    (
        "You do not have the correct group for this",
        "401",
        "The caller has none of the API's groups. An API added over REST without `api_allowed_groups` has none, so nobody has.",
        "Give the user a group of `spec.access.groups` or `api_allowed_groups`, or add the group there.",
    ),
    (
        "Rate limit exceeded",
        "429",
        "The user's own rate (`rate_limit_duration`) is used up.",
        "Wait as long as `Retry-After` says, or change the user.",
    ),
    (
        "Throttle queue limit exceeded",
        "429",
        "The user has made `throttle_queue_limit` calls in the window, or the call would wait more than a minute.",
        "Wait as long as `Retry-After` says, or change the user.",
    ),
    (
        "Bandwidth limit exceeded",
        "429",
        "The user's bytes, or those of the tier, are used up, or the body is larger than what is left of them.",
        "Wait as long as `Retry-After` says, or change the user or the tier.",
    ),
    ("Database unavailable", "500", "The document store is away and the caller is not known.", "See to MongoDB."),
    (
        "Service temporarily unavailable",
        "503",
        "Redis is away, so nobody can tell whether the token is revoked.",
        "See to Redis; try again.",
    ),
];

/// Refusals in another form than the usual one.
const FORMS: &[(&str, &str)] = &[
    (
        r#"{"detail": "..."}"#,
        "Paths and methods that there are not; nobody signed in, on routes that give it no code; tiers (but for their list and statistics), assignments, rate-limit rules, reloading of settings.",
    ),
    (r#"{"errors": ["..."]}"#, "A `target_identifier` that does not fit the `rule_type` of a rate-limit rule."),
    (
        r#"{"error_message": "..."}"#,
        "404 for users and roles that the caller may not know of, and for the statistics of a tier that there is not.",
    ),
    (
        r#"{"error": "Rate limit exceeded", "error_code": "RATE_LIMIT_EXCEEDED", "message": "...", "limit": 2, "remaining": 0, "reset_at": 1795914106, "retry_after": 61}"#,
        "`RATE_LIMIT_EXCEEDED`, whose `message` names limit and window.",
    ),
    (
        r#"{"status_code": 403, "error_code": "...", "error_message": "..."}"#,
        "`SEC010` and `SEC011`; all of APIs with `spec.envelope`; all of `/platform` with `STRICT_RESPONSE_ENVELOPE`. Not where the body is `detail`, `errors` or that of `RATE_LIMIT_EXCEEDED`.",
    ),
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
    (
        "GET",
        "/metrics",
        "traffic",
        "loopback; see `PROMETHEUS_*`",
        "The same metrics, in the classic format unless OpenMetrics is asked for.",
    ),
    ("GET", "/metrics", "admin", "the cluster", "Metrics for Prometheus, see [metrics](metrics.md)."),
    (
        "GET",
        "/revision",
        "admin",
        "the cluster",
        "What the process serves and what it rejects; with `?watch=true` one line for each change.",
    ),
    ("GET", "/livez", "admin", "the cluster", "The admin port answers."),
    (
        "GET",
        "/readyz",
        "admin",
        "the cluster",
        "Takes traffic: a snapshot is served and the process is not about to stop. Stores don't count.",
    ),
];

/// Files and contents.
fn pages() -> [(&'static str, String); 4] {
    let mut errors = page(
        "Error codes",
        "Refusals are JSON: `error_code` and `error_message`. The request id of the headers `X-Request-ID` and `request_id` finds\nthe cause in the log.",
    );
    errors.push_str("| Code | Status | When | What to do |\n|---|---|---|---|\n");
    let sorted: BTreeSet<_> = CODES.iter().collect();
    for (code, status, when, what) in sorted {
        let _ = writeln!(errors, "| `{code}` | {status} | {when} | {what} |");
    }
    errors.push_str(
        "\n## Refusals without a code\n\nUnder `/api` these texts are both `error_code` and `error_message`. Under `/platform` the route gives 401, 500 and 503 its own\n\
         code, or answers `{\"detail\": \"...\"}`.\n\n| Text | Status | When | What to do |\n|---|---|---|---|\n",
    );
    for (text, status, when, what) in TEXTS {
        let _ = writeln!(errors, "| `{text}` | {status} | {when} | {what} |");
    }
    errors.push_str("\n## Other forms\n\n| Body | Of what |\n|---|---|\n");
    for (body, what) in FORMS {
        let _ = writeln!(errors, "| `{body}` | {what} |");
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
        "\n## Platform API\n\nOn the traffic port. `GET /platform/openapi.json` tells more: bodies, answers and codes (OpenAPI 3.1).\n\
         `/platform/docs` (Swagger UI) and `/platform/redoc` show it in a browser that reaches cdn.jsdelivr.net.\n\n\
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
        "`GET /metrics` of the admin port answers in OpenMetrics 1.0: counters end in `_total`, histograms have `_bucket`, `_sum` and\n`_count`. Calls marked as tests (`X-Is-Test`, `X-Doorman-Test`, `X-Test-Request`) are left out of `doorman_http_requests`,\n`doorman_http_request_duration_seconds` and `doorman_api_*`; everything else counts them.",
    );
    metrics.push_str("| Metric | Type | Labels | Meaning |\n|---|---|---|---|\n");
    let pools = crate::upstream::Pools::new(crate::upstream::PoolOptions::local());
    let _pool = pools.get(&"http://orders:80".parse().unwrap(), None);
    let counted = Metrics::default().showing(pools);
    let _api = counted.apis.of("orders/v1");
    counted.request(200, std::time::Duration::ZERO);
    counted.limited(&crate::accounting::Kind::Rate);
    let text = counted.render();
    for line in text.lines() {
        let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) else { continue };
        let type_ = text.lines().find_map(|line| line.strip_prefix(&format!("# TYPE {name} "))).unwrap_or_default();
        let labels = text.lines().find_map(|line| line.strip_prefix(name)?.split_once('{')?.1.split_once('}'));
        let labels = labels.map(|(labels, _)| labels).unwrap_or_default().split(',');
        let labels = labels.filter_map(|label| label.split_once('=')).filter(|(label, _)| *label != "le");
        let labels: Vec<String> = labels.map(|(label, _)| format!("`{label}`")).collect();
        let _ = writeln!(metrics, "| `{name}` | {type_} | {} | {help} |", labels.join(", "));
    }
    let bodies = page("Bodies", &bodies::page());
    [("errors.md", errors), ("routes.md", routes), ("metrics.md", metrics), ("bodies.md", bodies)]
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
        if entry.is_dir() && name != "tests" {
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
        ["IP_RATE_LIMIT", "API_AUTH", "RATE_LIMIT_EXCEEDED"].contains(word)
            || word.len() == letters.len() + 3
                && (3..=9).contains(&letters.len())
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
