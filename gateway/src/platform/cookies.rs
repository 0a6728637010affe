//! The cookies of a session, and the attributes they get.

use std::{fmt::Write, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header, uri::Authority};

use crate::{
    client::Scheme,
    identity::{ACCESS_COOKIE, CSRF_COOKIE},
    settings::{SameSite, Settings},
};

const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// Cookie of earlier versions, deleted at sign-out.
const DEV_COOKIE: &str = "access_token_cookie_dev";

/// What one request gives its cookies.
pub(super) struct Cookies {
    is_secure: bool,
    same_site: &'static str,
    domain: Option<String>,
}

/// Name of the host the client asked, without port, in lower case.
fn host(headers: &HeaderMap, uri: &Uri) -> Option<String> {
    let named = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::to_owned);
    let authority = named(X_FORWARDED_HOST)
        .and_then(|list| list.split(',').next().map(|first| first.trim().to_owned()))
        .or_else(|| uri.authority().map(ToString::to_string))
        .or_else(|| named(header::HOST))?;
    Some(authority.parse::<Authority>().ok()?.host().to_ascii_lowercase())
}

impl Cookies {
    /// The attributes for a request.
    pub(super) fn new(settings: &Settings, headers: &HeaderMap, uri: &Uri, scheme: Scheme) -> Self {
        let (sessions, host) = (&settings.sessions, host(headers, uri));
        let is_https = scheme.is_effectively_https(headers);
        let enforces_https = settings.server.enforces_https();
        let is_local = matches!(host.as_deref(), Some("localhost" | "127.0.0.1"));
        // A browser would never send a Secure cookie back to a plain local gateway.
        let is_plain_and_local = is_local && !is_https && !enforces_https;
        let is_secure = sessions.cookie_secure.unwrap_or(enforces_https || is_https) && !is_plain_and_local;
        let same_site = match sessions.cookie_same_site {
            SameSite::Strict => "strict",
            SameSite::None if is_secure => "none",
            SameSite::Lax | SameSite::None => "lax",
        };
        let wanted =
            sessions.cookie_domain.as_deref().map(|domain| domain.trim_start_matches('.').to_ascii_lowercase());
        let domain = wanted.filter(|domain| {
            let is_of = |host: &str| {
                host == domain || host.strip_suffix(domain.as_str()).is_some_and(|rest| rest.ends_with('.'))
            };
            domain.contains('.') && !domain.contains([';', ',', ' ']) && !is_local && host.as_deref().is_some_and(is_of)
        });
        Self { is_secure, same_site, domain }
    }

    fn cookie(
        &self,
        name: &str,
        value: &str,
        life: Duration,
        same_site: &str,
        is_script_readable: bool,
    ) -> HeaderValue {
        let mut cookie = format!("{name}={value}; Max-Age={}; Path=/; SameSite={same_site}", life.as_secs());
        if let Some(domain) = &self.domain {
            // Writing to a string can't fail.
            let _ = write!(cookie, "; Domain={domain}");
        }
        if !is_script_readable {
            cookie.push_str("; HttpOnly");
        }
        if self.is_secure {
            cookie.push_str("; Secure");
        }
        // Tokens and names are plain ASCII; the domain was checked.
        HeaderValue::try_from(cookie).unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    fn deletion(&self, name: &str) -> HeaderValue {
        self.cookie(name, "", Duration::ZERO, "lax", false)
    }

    /// A new session, valid as long as its token.
    pub(super) fn start(&self, token: &str, csrf: &str, life: Duration, headers: &mut HeaderMap) {
        headers.append(header::SET_COOKIE, self.cookie(ACCESS_COOKIE, token, life, self.same_site, false));
        headers.append(header::SET_COOKIE, self.cookie(CSRF_COOKIE, csrf, life, self.same_site, true));
    }

    /// Removes the session that a browser may have, before a new one starts.
    pub(super) fn clear(&self, headers: &mut HeaderMap) {
        headers.append(header::SET_COOKIE, self.deletion(ACCESS_COOKIE));
    }

    /// The end of a session.
    pub(super) fn end(&self, headers: &mut HeaderMap) {
        self.clear(headers);
        headers.append(header::SET_COOKIE, self.deletion(DEV_COOKIE));
    }
}
