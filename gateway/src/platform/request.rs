//! What handlers take from a request.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts},
};
use bytes::Bytes;
use http::{HeaderName, Request, StatusCode, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::time::timeout;

use super::{Platform, cookies::Cookies};
use crate::{
    client::{ClientAddress, Scheme},
    identity::{CSRF_COOKIE, Denied, SignedIn, cookie},
    problem::Problem,
};

const X_CSRF_TOKEN: HeaderName = HeaderName::from_static("x-csrf-token");
/// Routes whose callers have no CSRF token yet, or want another.
const SESSIONS: &str = "/platform/authorization";

/// Longest time for the whole body of a platform call.
const BODY_TIME: Duration = Duration::from_secs(30);

/// The answer to a body above the limit.
pub(super) fn too_large(limit: u64) -> Problem {
    let message = format!("Request entity too large (max: {limit} bytes)");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "REQ001", message)
}

/// A whole body, whatever its type, of no more than `MAX_BODY_SIZE_BYTES`.
pub(super) struct Whole(pub(super) Bytes);

impl FromRequest<Platform> for Whole {
    type Rejection = Problem;

    async fn from_request(request: Request<Body>, platform: &Platform) -> Result<Self, Problem> {
        let limit = platform.settings.limits.body.0;
        let limited = Limited::new(request.into_body(), usize::try_from(limit).unwrap_or(usize::MAX));
        let whole = timeout(BODY_TIME, limited.collect()).await.map_err(|_| Problem::stalled())?;
        match whole {
            Ok(collected) => Ok(Self(collected.to_bytes())),
            Err(error) if error.is::<LengthLimitError>() => Err(too_large(limit)),
            Err(_) => Err(Problem::broken_body()),
        }
    }
}

/// The signed-in caller. Handlers that say the reason in their own words take a `Result` of it.
pub(super) struct Caller(pub(super) SignedIn);

impl FromRequestParts<Platform> for Caller {
    type Rejection = Denied;

    async fn from_request_parts(parts: &mut Parts, platform: &Platform) -> Result<Self, Denied> {
        let signed_in = platform.identity.sign_in(&parts.headers).await?;
        check_csrf(parts, platform, &signed_in).await?;
        Ok(Self(signed_in))
    }
}

/// The double submit: over https, the header must repeat the cookie; a client without cookies repeats what it was told
/// at its latest sign-in.
async fn check_csrf(parts: &Parts, platform: &Platform, signed_in: &SignedIn) -> Result<(), Denied> {
    let path = parts.uri.path();
    let is_of_sessions = path.strip_prefix(SESSIONS).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let is_https = scheme(parts).is_effectively_https(&parts.headers);
    if !platform.settings.server.enforces_https() || !is_https || is_of_sessions {
        return Ok(());
    }
    let sent = parts.headers.get(X_CSRF_TOKEN).and_then(|value| value.to_str().ok()).filter(|sent| !sent.is_empty());
    let sent = sent.ok_or(Denied::Csrf)?;
    let matches = match cookie(&parts.headers, CSRF_COOKIE) {
        Some(cookie) => cookie == sent,
        None => platform.identity.store().csrf(&signed_in.principal.username).await?.is_some_and(|told| told == sent),
    };
    if matches { Ok(()) } else { Err(Denied::Csrf) }
}

fn scheme(parts: &Parts) -> Scheme {
    parts.extensions.get().copied().unwrap_or(Scheme::Http)
}

/// Where a request comes from, and what its cookies would be.
pub(super) struct Origin {
    pub(super) address: IpAddr,
    pub(super) cookies: Cookies,
}

impl FromRequestParts<Platform> for Origin {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, platform: &Platform) -> Result<Self, Self::Rejection> {
        let address = parts.extensions.get::<ClientAddress>().map(|client| client.effective);
        if address.is_none() {
            tracing::error!("a request without its client's address: all such share one limit");
        }
        let cookies = Cookies::new(&platform.settings, &parts.headers, &parts.uri, scheme(parts));
        Ok(Self { address: address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), cookies })
    }
}
