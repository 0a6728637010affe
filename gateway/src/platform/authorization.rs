//! Sign-in and sign-out, registration, and what administrators do about others' sessions: `/platform/authorization`
//! (reference: platform API 4).

use std::{error::Error, net::IpAddr, sync::Arc, time::Duration};

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use doorman_crds::role::Permission;
use http::{HeaderMap, HeaderName, StatusCode, header};
use mongodb::bson::{Bson, doc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    Platform,
    answer::{Answer, Message, Refusal, busy, failed, store_failed},
    request::{At, Caller, Origin, Whole, invalid},
    users,
};
use crate::{
    client,
    crypt::fingerprint,
    identity::{Denied, Identity, SignedIn, needs_upgrade},
    problem::Problem,
    store::{Collection, Family, Password, Store, StoreError, User, Window, now},
};

/// Sign-in without e-mail or password.
const MISSING: &str = "AUTH001";
/// Unknown user or wrong password; nobody is told which.
const INVALID: &str = "AUTH002";
/// Nobody is signed in (refresh).
const NOT_REFRESHED: &str = "AUTH003";
/// The body isn't JSON.
const NOT_JSON: &str = "AUTH004";
/// Nobody is signed in (status, sign-out).
const NOT_SIGNED_IN: &str = "AUTH005";
/// An e-mail address that gives no user name.
const NO_NAME: &str = "AUTH006";
/// The user has been deactivated.
const INACTIVE: &str = "AUTH007";
/// The password must be changed first.
const MUST_RESET: &str = "AUTH008";
/// Too many failed sign-ins with one name.
const ACCOUNT_LIMITED: &str = "AUTH009";
/// `manage_auth` is needed.
const FORBIDDEN: (&str, &str) = ("AUTH900", "You do not have permission to manage auth");
/// Too many sign-ins from one address.
const RATE_LIMITED: &str = "IP_RATE_LIMIT";
/// Whether there are too many can't be known, and `DOORMAN_LIMITS_FAIL_MODE` is `Closed`.
const LIMIT_UNKNOWN: &str = "LIM503";

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default()
        .routes(routes!(sign_in))
        .routes(routes!(status))
        .routes(routes!(refresh))
        .routes(routes!(sign_out))
        .routes(routes!(register))
        .routes(routes!(revoke))
        .routes(routes!(unrevoke))
        .routes(routes!(disable))
        .routes(routes!(enable))
        .routes(routes!(standing))
}

/// Who wants to sign in.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the form of the body, which is read by hand for its own codes")]
struct Credentials {
    /// The e-mail address, or the name.
    email: String,
    password: String,
}

/// A token that lasts half an hour unless the settings say otherwise.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the form of the answer")]
struct AccessToken {
    access_token: String,
}

/// A token that lasts a week unless the settings say otherwise.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the form of the answer")]
struct RefreshToken {
    refresh_token: String,
}

/// What a user may do at this moment.
#[derive(Debug, Serialize, ToSchema)]
struct StandingOf {
    active: bool,
    /// Are all tokens refused, later ones too?
    revoked: bool,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct Username {
    /// The user's name.
    username: String,
}

/// Whose tokens to revoke.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the form of the body, which may also be absent")]
struct Other {
    /// Another user's name; absent: the caller's own token alone.
    #[schema(min_length = 1)]
    username: Option<String>,
}

/// Signs in with e-mail address and password; sets the session cookies.
#[utoipa::path(post, path = "/platform/authorization", tag = "Authorization", request_body = Credentials,
    responses((status = 200, description = "Signed in.", body = AccessToken)),
    extensions(("x-error-codes" = json!(["400 AUTH001", "400 AUTH002", "400 AUTH004", "400 AUTH007", "403 AUTH008",
        "429 AUTH009", "429 IP_RATE_LIMIT"]))))]
async fn sign_in(
    State(platform): State<Platform>,
    origin: Origin,
    body: Result<Whole, Problem>,
) -> Result<Response, Problem> {
    let sessions = &platform.settings.sessions;
    let (limit, window) = (sessions.login_rate_limit, sessions.login_rate_window);
    let limits = limit_address(&platform, "", origin.counted_as, limit.get(), window).await?;
    let (login, password) = credentials(&body?.0)?;
    let identity = &platform.identity;

    let known = now();
    let user = identity.store().user_for_login(&login).await.map_err(store_failed)?;
    if let Some(user) = &user {
        origin.trail.account(&user.username);
    }
    let attempt = Attempt::begin(&platform, &login).await?;
    let stored = user.as_ref().and_then(|user| user.password.as_ref());
    let verified = identity.passwords().verify(password.clone(), stored).await;
    if verified != Ok(false) {
        attempt.has_not_failed(identity.store()).await;
    }
    let is_right = verified.map_err(busy)?;
    let Some(user) = user.filter(|_| is_right) else {
        tracing::info!(client_ip = %origin.address, "A sign-in was refused");
        return Err(Problem::new(StatusCode::BAD_REQUEST, INVALID, "Invalid email or password"));
    };
    if !user.active {
        return Err(inactive());
    }
    if user.force_password_reset {
        return Err(must_reset());
    }
    if let Some(stored) = &user.password
        && let Err(error) = upgrade(identity, &user.username, stored, password).await
    {
        tracing::warn!(%error, "a password keeps its old hash");
    }

    let life = platform.settings.sessions.access_token_life();
    let mut headers = limits;
    origin.cookies.clear(&mut headers);
    let token = start_session(&platform, &origin, (&user, known), life, &mut headers).await?;
    tracing::info!(username = %user.username, client_ip = %origin.address, "User {} logged in", user.username);
    Ok((headers, Answer::token("access_token", token)).into_response())
}

fn inactive() -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, INACTIVE, "User is not active")
}

fn must_reset() -> Problem {
    let message = "Your password must be changed by an administrator before you can sign in";
    Problem::new(StatusCode::FORBIDDEN, MUST_RESET, message)
}

/// A sign-in that counts as failed until it turns out otherwise: so many at once are no way around the limit. What is
/// counted is the name that was given, whether there is such a user or not: nobody learns from it who exists.
struct Attempt {
    counter: String,
    window: Window,
    now: u64,
}

impl Attempt {
    async fn begin(platform: &Platform, login: &str) -> Result<Self, Problem> {
        let (sessions, now) = (&platform.settings.sessions, now());
        let window = Window::at(now, sessions.account_rate_window);
        // People type passwords where names belong; those must not end in a store of counters.
        let counter = Family::Failures.named(fingerprint(login));
        let limit = u64::from(sessions.account_rate_limit.get());
        let count = platform.identity.store().count(&counter, window, now).await;
        if count.map_err(|error| uncounted(&error))? <= limit {
            return Ok(Self { counter, window, now });
        }
        tracing::warn!(account = counter, "Too many failed sign-ins with one name");
        let wait = window.end().saturating_sub(now).max(1);
        let message = format!("Too many failed sign-ins. Please wait {wait} seconds before trying again.");
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, ACCOUNT_LIMITED, message);
        Err(problem.header(header::RETRY_AFTER, wait))
    }

    async fn has_not_failed(self, store: &Store) {
        store.uncount(&self.counter, self.window, self.now).await;
    }
}

/// Hashes a password again that was hashed with less work than is due today.
async fn upgrade(
    identity: &Identity,
    username: &str,
    stored: &Password,
    password: String,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    if !needs_upgrade(stored) {
        return Ok(());
    }
    let hash = identity.passwords().hash(password).await?;
    // One that was changed meanwhile stays changed. Databases have hashes in either form.
    let text = std::str::from_utf8(stored.hash()).map_or(Bson::Null, Bson::from);
    let forms = [users::binary(stored.hash().to_vec()), text];
    let members = doc! { "password": users::binary(hash) };
    if identity.store().set_if(Collection::Users, &[username], &[("password", &forms)], members).await? {
        tracing::info!(username, "a password was hashed with more work");
    }
    Ok(())
}

/// Issues a token for a user as known at this second, and sets the cookies that go with it.
async fn start_session(
    platform: &Platform,
    origin: &Origin,
    (user, known): (&User, u64),
    life: Duration,
    headers: &mut HeaderMap,
) -> Result<String, Problem> {
    let identity = &platform.identity;
    let accesses = identity.accesses(user).await.map_err(store_failed)?;
    let token = identity.keys().issue((user, known), accesses, life).map_err(|error| failed(&error))?;
    let csrf = Uuid::new_v4().to_string();
    if let Err(error) = identity.store().remember_csrf(&user.username, &csrf).await {
        tracing::warn!(%error, "clients without cookies can't pass the CSRF check");
    }
    origin.cookies.start(&token, &csrf, life, headers);
    Ok(token)
}

/// E-mail (or name) and password.
fn credentials(body: &[u8]) -> Result<(String, String), Problem> {
    let Ok(Value::Object(body)) = serde_json::from_slice(body) else {
        return Err(Problem::new(StatusCode::BAD_REQUEST, NOT_JSON, "Invalid JSON payload"));
    };
    let text = |name| body.get(name).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
    text("email")
        .zip(text("password"))
        .ok_or_else(|| Problem::new(StatusCode::BAD_REQUEST, MISSING, "Missing email or password"))
}

/// What can't be counted is refused, where the settings say so.
fn uncounted(error: &StoreError) -> Problem {
    tracing::warn!(%error, "a sign-in was refused: it can't be counted");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, LIMIT_UNKNOWN, Denied::Unavailable.reason())
        .header(header::RETRY_AFTER, 5)
}

/// Counts an attempt, of one kind in one window. The headers tell how many are left.
async fn limit_address(
    platform: &Platform,
    kind: &str,
    address: IpAddr,
    limit: u32,
    window: Duration,
) -> Result<HeaderMap, Problem> {
    if platform.settings.sessions.login_rate_disabled {
        return Ok(HeaderMap::new());
    }
    let (limit, now) = (u64::from(limit), now());
    let window = Window::at(now, window);
    let counter = Family::Address.named(format_args!("{kind}{}", client::counted(address)));
    let count = platform.identity.store().count(&counter, window, now).await.map_err(|error| uncounted(&error))?;
    let told = [(LIMIT, limit.into()), (REMAINING, limit.saturating_sub(count).into()), (RESET, window.end().into())];
    if count <= limit {
        return Ok(told.into_iter().collect());
    }
    tracing::warn!(client_ip = %address, "Too many sign-ins or registrations from one address");
    let wait = window.end().saturating_sub(now).max(1);
    let message = format!(
        "Too many requests from your IP address. Please wait {wait} seconds before trying again. \
         Limit: {limit} requests per {} seconds.",
        window.seconds()
    );
    let mut problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, RATE_LIMITED, message);
    problem.headers.extend(told);
    Err(problem.header(header::RETRY_AFTER, wait))
}

fn not_signed_in(denied: Denied) -> Problem {
    Problem::new(denied.status(), NOT_SIGNED_IN, denied.reason())
}

/// Tells whether the token is valid.
#[utoipa::path(get, path = "/platform/authorization/status", tag = "Authorization",
    responses((status = 200, description = "It is.", body = Message)), security(("token" = [])),
    extensions(("x-error-codes" = json!(["401 AUTH005", "500 AUTH005", "503 AUTH005"]))))]
async fn status(caller: Result<Caller, Denied>) -> Result<Answer, Problem> {
    caller.map_err(not_signed_in)?;
    Ok(Answer::message("Token is valid"))
}

/// Replaces the token by one that lasts longer.
#[utoipa::path(post, path = "/platform/authorization/refresh", tag = "Authorization",
    responses((status = 200, description = "The new token.", body = RefreshToken)), security(("token" = [])),
    extensions(("x-error-codes" = json!(["400 AUTH007", "401 AUTH003", "403 AUTH008"]))))]
async fn refresh(
    State(platform): State<Platform>,
    origin: Origin,
    caller: Result<Caller, Denied>,
) -> Result<Response, Problem> {
    let refused = |_| Problem::new(StatusCode::UNAUTHORIZED, NOT_REFRESHED, "Unable to validate credentials");
    let Caller(SignedIn { principal, token: shown }) = caller.map_err(refused)?;
    let known = now();
    let user = platform.identity.store().user(&principal.username).await.map_err(store_failed)?;
    let Some(user) = user.filter(|user| user.active) else { return Err(inactive()) };
    if user.force_password_reset {
        return Err(must_reset());
    }
    // What was taken away since the token was looked at isn't given again.
    if !user.accepts(shown.iat) {
        return Err(refused(Denied::Unauthorized));
    }
    let life = platform.settings.sessions.refresh_token_life();
    let mut headers = HeaderMap::new();
    let token = start_session(&platform, &origin, (&user, known), life, &mut headers).await?;
    Ok((headers, Answer::token("refresh_token", token)).into_response())
}

/// Signs out: revokes the caller's token; with another user's name and the permission to, all tokens of that user.
#[utoipa::path(post, path = "/platform/authorization/invalidate", tag = "Authorization",
    request_body = Option<Other>,
    responses((status = 200, description = "The token is worth nothing any more.", body = Message)),
    security(("token" = [])), extensions(("x-error-codes" = json!(["401 AUTH005", "403 AUTH900", "503 AUTH005"]))))]
async fn sign_out(
    State(platform): State<Platform>,
    origin: Origin,
    caller: Result<Caller, Denied>,
    body: Result<Whole, Problem>,
) -> Result<Response, Refusal> {
    let other = named_user(&body?.0)?;
    let caller = caller.map_err(not_signed_in)?;
    if let Some(username) = other.filter(|name| !caller.is(name)) {
        return Ok(revoke_all(&platform, &caller, &username).await?.into_response());
    }
    let revoked = platform.identity.revoke_token(&caller.0.token).await;
    revoked.map_err(|error| not_signed_in(Denied::from(error)))?;
    let mut headers = HeaderMap::new();
    origin.cookies.end(&mut headers);
    Ok((headers, Answer::message("Your token has been invalidated")).into_response())
}

/// The user a body names, if it says anything.
fn named_user(body: &[u8]) -> Result<Option<String>, Problem> {
    if body.trim_ascii().is_empty() {
        return Ok(None);
    }
    // Taken for nothing, a broken call to revoke another's tokens would end the caller's own session and say "done".
    let body: Value = serde_json::from_slice(body).map_err(|_| invalid())?;
    if body.is_null() {
        return Ok(None);
    }
    match body.as_object().ok_or_else(invalid)?.get("username") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) if !name.is_empty() => Ok(Some(name.clone())),
        Some(_) => Err(invalid()),
    }
}

/// Adds a user with the role `user`, named by what stands before the `@` of the e-mail address. Nobody is signed in by it.
#[utoipa::path(post, path = "/platform/authorization/register", tag = "Authorization", request_body = Credentials,
    responses((status = 201, description = "The user was added.", body = Message)),
    extensions(("x-error-codes" = json!(["400 AUTH001", "400 AUTH004", "400 AUTH006", "400 USR001", "400 USR005",
        "403 AUTH010", "429 IP_RATE_LIMIT"]))))]
async fn register(
    State(platform): State<Platform>,
    origin: Origin,
    body: Result<Whole, Problem>,
) -> Result<Answer, Refusal> {
    const LONGEST: usize = 50;
    if !platform.settings.features.registration {
        let message = "Registration is switched off; ask an administrator for an account";
        return Err(Problem::new(StatusCode::FORBIDDEN, "AUTH010", message).into());
    }
    let sessions = &platform.settings.sessions;
    let (limit, window) = (sessions.register_rate_limit, sessions.register_rate_window);
    limit_address(&platform, "register:", origin.counted_as, limit.get(), window).await?;
    let (email, password) = credentials(&body?.0)?;
    let bad = |code, message| Refusal::from(Problem::new(StatusCode::BAD_REQUEST, code, message));
    let username = email.split_once('@').map_or("", |(name, host)| if host.is_empty() { "" } else { name });
    let is_name = (3..=LONGEST).contains(&username.chars().count()) && email.chars().count() <= 127;
    if !is_name || email.contains(char::is_control) {
        return Err(bad(NO_NAME, "Email must have a name of 3 to 50 characters before the @"));
    }
    let store = platform.identity.store();
    if store.user(username).await?.is_some() {
        return Err(bad("USR001", "Username already exists"));
    }
    if store.user_by_email(&email).await?.is_some() || users::is_anothers_login(&platform, username, &email).await? {
        return Err(bad("USR001", "Email already exists"));
    }
    if password.chars().count() > LONGEST {
        return Err(bad("USR005", "Password must have no more than 50 characters"));
    }
    let password = Some(Password::from_hash(&users::hash(&platform, password).await?));
    // Whoever it was meant for may be someone else.
    users::forget_belongings(store, username).await?;
    match store.insert_user(User { password, tokens_from: Some(now()), ..User::new(username, &email, "user") }).await {
        Ok(()) => {
            origin.trail.account(&username.into());
            tracing::info!(username, client_ip = %origin.address, "A user has registered");
            Ok(Answer::created("User created successfully"))
        }
        // Someone else was faster.
        Err(StoreError::Taken) => Err(bad("USR001", "Username already exists")),
        Err(error) => Err(error.into()),
    }
}

/// The user of this name, for a caller who may decide about sessions; administrators' only for administrators.
async fn governed(platform: &Platform, caller: &Caller, username: &str) -> Result<Option<Arc<User>>, Refusal> {
    caller.must(platform, Permission::ManageAuth, FORBIDDEN).await?;
    let user = platform.identity.store().user(username).await?;
    if let Some(user) = &user
        && platform.is_admin_user(user).await?
        && !caller.is_admin(platform).await?
    {
        return Err(not_found());
    }
    Ok(user)
}

fn not_found() -> Refusal {
    Problem::without_code(StatusCode::NOT_FOUND, "User not found").into()
}

/// Revokes all tokens of a user, also of one who isn't there yet.
async fn revoke_all(platform: &Platform, caller: &Caller, username: &str) -> Result<Answer, Refusal> {
    governed(platform, caller, username).await?;
    platform.identity.store().set_user_revoked(username, true).await?;
    tracing::info!(by = %caller.0.principal.username, username, "All tokens of a user were revoked");
    Ok(Answer::message(format!("All tokens revoked for {username}")))
}

/// Refuses all tokens of a user, later ones too, until it is taken back.
#[utoipa::path(post, path = "/platform/authorization/admin/revoke/{username}", tag = "Authorization", params(Username),
    responses((status = 200, description = "They are refused.", body = Message)),
    security(("token" = ["manage_auth"])), extensions(("x-error-codes" = json!(["403 AUTH900"]))))]
async fn revoke(
    State(platform): State<Platform>,
    At(Username { username }): At<Username>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    revoke_all(&platform, &caller, &username).await
}

/// Takes back that all tokens of a user are refused.
#[utoipa::path(post, path = "/platform/authorization/admin/unrevoke/{username}", tag = "Authorization",
    params(Username), responses((status = 200, description = "They count again.", body = Message)),
    security(("token" = ["manage_auth"])), extensions(("x-error-codes" = json!(["403 AUTH900"]))))]
async fn unrevoke(
    State(platform): State<Platform>,
    At(Username { username }): At<Username>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    governed(&platform, &caller, &username).await?;
    platform.identity.store().set_user_revoked(&username, false).await?;
    tracing::info!(by = %caller.0.principal.username, username, "The tokens of a user count again");
    Ok(Answer::message(format!("Token revocation cleared for {username}")))
}

/// Makes a user inactive, and refuses all its tokens.
#[utoipa::path(post, path = "/platform/authorization/admin/disable/{username}", tag = "Authorization", params(Username),
    responses((status = 200, description = "The user is inactive.", body = Message)),
    security(("token" = ["manage_auth"])), extensions(("x-error-codes" = json!(["403 AUTH900"]))))]
async fn disable(
    State(platform): State<Platform>,
    At(Username { username }): At<Username>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    governed(&platform, &caller, &username).await?;
    let store = platform.identity.store();
    // The tokens first: if the second step fails, the answer says so and nobody is in.
    store.set_user_revoked(&username, true).await?;
    store.set(Collection::Users, &[&username], doc! { "active": false }).await?;
    tracing::info!(by = %caller.0.principal.username, username, "A user was disabled");
    Ok(Answer::message(format!("User {username} disabled and tokens revoked")))
}

/// Makes a user active again. Tokens that are refused stay so.
#[utoipa::path(post, path = "/platform/authorization/admin/enable/{username}", tag = "Authorization", params(Username),
    responses((status = 200, description = "The user is active.", body = Message)),
    security(("token" = ["manage_auth"])), extensions(("x-error-codes" = json!(["403 AUTH900"]))))]
async fn enable(
    State(platform): State<Platform>,
    At(Username { username }): At<Username>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    governed(&platform, &caller, &username).await?;
    platform.identity.store().set(Collection::Users, &[&username], doc! { "active": true }).await?;
    tracing::info!(by = %caller.0.principal.username, username, "A user was enabled");
    Ok(Answer::message(format!("User {username} enabled")))
}

/// Tells whether a user is active, and whether all its tokens are refused.
#[utoipa::path(get, path = "/platform/authorization/admin/status/{username}", tag = "Authorization", params(Username),
    responses((status = 200, description = "How it stands.", body = StandingOf),
        (status = 404, description = "There is no such user.")),
    security(("token" = ["manage_auth"])), extensions(("x-error-codes" = json!(["403 AUTH900"]))))]
async fn standing(
    State(platform): State<Platform>,
    At(Username { username }): At<Username>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    let user = governed(&platform, &caller, &username).await?.ok_or_else(not_found)?;
    let revoked = platform.identity.store().is_user_revoked(&username).await?;
    Ok(Answer::data(json!(StandingOf { active: user.active, revoked })))
}
