//! Sign-in, refresh, status and sign-out: `/platform/authorization`.

use std::{net::IpAddr, time::Duration};

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use doorman_crds::role::Permission;
use http::{HeaderMap, HeaderName, StatusCode, header};
use serde_json::Value;
use uuid::Uuid;

use super::{
    Platform,
    answer::Answer,
    request::{Caller, Origin, Whole},
};
use crate::{
    identity::{Busy, Denied, KeyError, SignedIn},
    problem::Problem,
    store::{StoreError, User, Window, now},
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
/// The user has been deactivated.
const INACTIVE: &str = "AUTH007";
/// The password must be changed first.
const MUST_RESET: &str = "AUTH008";
/// `manage_auth` is needed.
const FORBIDDEN: &str = "AUTH900";
/// Too many sign-ins from one address.
const RATE_LIMITED: &str = "IP_RATE_LIMIT";
/// Whether there are too many can't be known, and `DOORMAN_LIMITS_FAIL_MODE` is `Closed`.
const LIMIT_UNKNOWN: &str = "LIM503";
/// A body of the wrong form.
const INVALID_BODY: &str = "VAL001";
/// Anything else.
const UNEXPECTED: &str = "GTW999";

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

pub(super) fn routes() -> Router<Platform> {
    Router::new()
        .route("/platform/authorization", post(sign_in))
        .route("/platform/authorization/status", get(status))
        .route("/platform/authorization/refresh", post(refresh))
        .route("/platform/authorization/invalidate", post(sign_out))
}

fn store_failed(error: StoreError) -> Problem {
    let denied = Denied::from(error);
    Problem::new(denied.status(), UNEXPECTED, denied.reason())
}

fn signing_failed(error: &KeyError) -> Problem {
    tracing::error!(%error, "no token was issued");
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, UNEXPECTED, "An unexpected error occurred")
}

async fn sign_in(
    State(platform): State<Platform>,
    origin: Origin,
    body: Result<Whole, Problem>,
) -> Result<Response, Problem> {
    let limits = limit_address(&platform, origin.address).await?;
    let (login, password) = credentials(&body?.0)?;
    let identity = &platform.identity;

    let user = identity.store().user_for_login(&login).await.map_err(store_failed)?;
    let stored = user.as_ref().and_then(|user| user.password.as_ref());
    let is_right = identity.passwords().verify(password, stored).await.map_err(|Busy| {
        tracing::warn!("a sign-in was turned away: too many at once");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, UNEXPECTED, Denied::Unavailable.reason())
            .header(header::RETRY_AFTER, 5)
    })?;
    let Some(user) = user.filter(|_| is_right) else {
        tracing::info!(client_ip = %origin.address, "A sign-in was refused");
        return Err(Problem::new(StatusCode::BAD_REQUEST, INVALID, "Invalid email or password"));
    };
    if !user.active {
        return Err(inactive());
    }
    if user.force_password_reset {
        let message = "Your password must be changed by an administrator before you can sign in";
        return Err(Problem::new(StatusCode::FORBIDDEN, MUST_RESET, message));
    }

    let life = platform.settings.sessions.access_token_life();
    let mut headers = limits;
    origin.cookies.clear(&mut headers);
    let token = start_session(&platform, &origin, &user, life, &mut headers).await?;
    tracing::info!(username = %user.username, client_ip = %origin.address, "User {} logged in", user.username);
    Ok((headers, Answer::token("access_token", token)).into_response())
}

fn inactive() -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, INACTIVE, "User is not active")
}

/// Issues a token and sets the cookies that go with it.
async fn start_session(
    platform: &Platform,
    origin: &Origin,
    user: &User,
    life: Duration,
    headers: &mut HeaderMap,
) -> Result<String, Problem> {
    let identity = &platform.identity;
    let accesses = identity.accesses(user).await.map_err(store_failed)?;
    let token = identity.keys().issue(user, accesses, life).map_err(|error| signing_failed(&error))?;
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

/// Who shares a limit: an IPv4 address, or the network of an IPv6 address, of which a client has a whole one.
fn limited_address(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & !u128::from(u64::MAX)).into()),
        IpAddr::V4(_) => address,
    }
}

/// Counts an attempt. The headers tell how many are left.
async fn limit_address(platform: &Platform, address: IpAddr) -> Result<HeaderMap, Problem> {
    let sessions = &platform.settings.sessions;
    if sessions.login_rate_disabled {
        return Ok(HeaderMap::new());
    }
    let (limit, now) = (u64::from(sessions.login_rate_limit.get()), now());
    let window = Window::at(now, sessions.login_rate_window);
    let counter = format!("ip_rate_limit:{}", limited_address(address));
    let count = platform.identity.store().count(&counter, window, now).await.map_err(|error| {
        tracing::warn!(%error, client_ip = %address, "a sign-in was refused: it can't be counted");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, LIMIT_UNKNOWN, Denied::Unavailable.reason())
            .header(header::RETRY_AFTER, 5)
    })?;
    let told = [(LIMIT, limit.into()), (REMAINING, limit.saturating_sub(count).into()), (RESET, window.end().into())];
    if count <= limit {
        return Ok(told.into_iter().collect());
    }
    tracing::warn!(client_ip = %address, "Too many sign-ins from one address");
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

async fn status(caller: Result<Caller, Denied>) -> Result<Answer, Problem> {
    caller.map_err(not_signed_in)?;
    Ok(Answer::message("Token is valid"))
}

async fn refresh(
    State(platform): State<Platform>,
    origin: Origin,
    caller: Result<Caller, Denied>,
) -> Result<Response, Problem> {
    let refused = |_| Problem::new(StatusCode::UNAUTHORIZED, NOT_REFRESHED, "Unable to validate credentials");
    let Caller(SignedIn { principal, .. }) = caller.map_err(refused)?;
    let user = platform.identity.store().user(&principal.username).await.map_err(store_failed)?;
    let Some(user) = user.filter(|user| user.active) else { return Err(inactive()) };
    let life = platform.settings.sessions.refresh_token_life();
    let mut headers = HeaderMap::new();
    let token = start_session(&platform, &origin, &user, life, &mut headers).await?;
    Ok((headers, Answer::token("refresh_token", token)).into_response())
}

/// Revokes the caller's token; with another user's name and the permission to, all tokens of that user.
async fn sign_out(
    State(platform): State<Platform>,
    origin: Origin,
    caller: Result<Caller, Denied>,
    body: Result<Whole, Problem>,
) -> Result<Response, Problem> {
    let other = named_user(&body?.0)?;
    let Caller(SignedIn { principal, token }) = caller.map_err(not_signed_in)?;
    let identity = &platform.identity;
    let failed = |error| not_signed_in(Denied::from(error));
    if let Some(username) = other.filter(|name| **name != *principal.username) {
        if !identity.may(&principal, Permission::ManageAuth).await.map_err(not_signed_in)? {
            return Err(Problem::new(StatusCode::FORBIDDEN, FORBIDDEN, "You do not have permission to manage auth"));
        }
        identity.set_user_revoked(&username, true).await.map_err(failed)?;
        tracing::info!(by = %principal.username, username, "All tokens of a user were revoked");
        return Ok(Answer::message(format!("All tokens revoked for {username}")).into_response());
    }
    identity.revoke_token(&token).await.map_err(failed)?;
    let mut headers = HeaderMap::new();
    origin.cookies.end(&mut headers);
    Ok((headers, Answer::message("Your token has been invalidated")).into_response())
}

/// The user a body names, if it says anything.
fn named_user(body: &[u8]) -> Result<Option<String>, Problem> {
    let invalid = || Problem::new(StatusCode::UNPROCESSABLE_ENTITY, INVALID_BODY, "Validation Error");
    if body.trim_ascii().is_empty() {
        return Ok(None);
    }
    // Taken for nothing, a broken call to revoke another's tokens would end the caller's own session and say "done".
    let body: Value = serde_json::from_slice(body).map_err(|_| invalid())?;
    match body.as_object().ok_or_else(invalid)?.get("username") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) if !name.is_empty() => Ok(Some(name.clone())),
        Some(_) => Err(invalid()),
    }
}
