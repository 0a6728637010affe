//! Who is at the other end: the address that counts, and how the request came in.
//!
//! The listener puts a [`ClientAddress`] and a [`Scheme`] into every request's extensions.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName};

use crate::networks::Networks;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// What proxies that send no `X-Forwarded-For` send, in the order they are asked.
const ELSE: [HeaderName; 2] = [HeaderName::from_static("x-real-ip"), HeaderName::from_static("cf-connecting-ip")];

/// Headers whose presence says that a proxy stands between; then the peer is not the client.
const FORWARDING: [&str; 4] = ["x-forwarded-for", "x-real-ip", "cf-connecting-ip", "forwarded"];

/// Did a proxy pass this on?
pub fn is_forwarded(headers: &HeaderMap) -> bool {
    FORWARDING.iter().any(|name| headers.contains_key(*name))
}

/// Whose forwarding headers are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// No one's: the peer is the client.
    Nobody,
    /// Every hop's, so that any caller can choose its address.
    Everyone,
    /// Those of these proxies.
    Listed(Networks),
}

/// Addresses of a client, both without an IPv4 address in IPv6 clothes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress {
    /// The other end of the connection.
    pub peer: IpAddr,
    /// The client, as far as it can be believed; see [`effective`].
    pub effective: IpAddr,
}

impl ClientAddress {
    /// Both addresses of a request that came from this peer.
    pub fn new(headers: &HeaderMap, trust: &Trust, peer: IpAddr) -> Self {
        Self { peer: peer.to_canonical(), effective: effective(headers, trust, peer) }
    }
}

/// Who is counted as one: an IPv4 address, or the network of an IPv6 address, of which a client has a whole one.
pub fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & !u128::from(u64::MAX)).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// The id of a request, as its answer carries it.
#[derive(Clone, Debug)]
pub struct RequestId(pub http::HeaderValue);

/// Who has signed in with a call of the platform API; in the answer's extensions.
#[derive(Clone, Debug)]
pub struct CallerName(pub std::sync::Arc<str>);

/// How a request came to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Plain.
    Http,
    /// Over TLS that ends here.
    Https,
}

impl Scheme {
    /// Did the client use https, ending here or at a proxy? Claiming https only makes the rules stricter (Secure
    /// cookies, CSRF check), so anyone may.
    pub fn is_effectively_https(self, headers: &HeaderMap) -> bool {
        let claimed = || headers.get(X_FORWARDED_PROTO).and_then(|value| value.to_str().ok());
        self == Self::Https
            || claimed().is_some_and(|value| {
                value.split(',').next().is_some_and(|first| first.trim().eq_ignore_ascii_case("https"))
            })
    }
}

/// The client's address: the peer's, unless the peer's forwarding headers are believed.
///
/// `X-Forwarded-For` is read from its end, where the nearest proxy wrote: the first address that is not a listed proxy
/// is the client's. What lies before it is the client's own word. An unreadable entry ends the reading.
pub fn effective(headers: &HeaderMap, trust: &Trust, peer: IpAddr) -> IpAddr {
    let peer = peer.to_canonical();
    let is_proxy = |address: &IpAddr| match trust {
        Trust::Nobody => false,
        Trust::Everyone => true,
        Trust::Listed(proxies) => proxies.contains(*address),
    };
    if !is_proxy(&peer) {
        return peer;
    }
    if headers.get_all(X_FORWARDED_FOR).iter().any(|value| !value.as_bytes().trim_ascii().is_empty()) {
        let mut nearest = peer;
        for value in headers.get_all(X_FORWARDED_FOR).iter().rev() {
            for entry in value.to_str().unwrap_or("?").rsplit(',') {
                let Some(address) = address(entry.trim()) else { return nearest };
                nearest = address;
                if !is_proxy(&nearest) {
                    return nearest;
                }
            }
        }
        return nearest;
    }
    let single = |name| {
        let mut values = headers.get_all(name).iter();
        let first = values.next()?.to_str().ok()?;
        values.next().is_none().then(|| address(first.trim()))?
    };
    ELSE.iter().find_map(single).unwrap_or(peer)
}

/// An address, with or without a port.
fn address(entry: &str) -> Option<IpAddr> {
    let bare = entry.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(entry);
    let parsed = bare.parse().or_else(|_| entry.parse::<SocketAddr>().map(|socket| socket.ip()));
    parsed.ok().map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        security::Security,
        settings::{Settings, Source},
    };

    fn security(trust: &str, proxies: &str) -> Security {
        let pairs = [
            ("JWT_SECRET_KEY", "0123456789abcdef0123456789abcdef"),
            ("DOORMAN_ADMIN_PASSWORD", "long-enough-password"),
            ("trust_x_forwarded_for", trust),
            ("xff_trusted_proxies", proxies),
        ];
        Security::new(&Settings::load(Source::from_pairs(pairs)).unwrap().0)
    }

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        let mut headers = HeaderMap::new();
        pairs.iter().map(pair).for_each(|(name, value)| {
            headers.append(name, value);
        });
        headers
    }

    #[track_caller]
    fn check(trust: &str, proxies: &str, peer: &str, sent: &[(&str, &str)], expected: &str) {
        let seen = effective(&headers(sent), security(trust, proxies).active().trust(), peer.parse().unwrap());
        assert_eq!(seen, expected.parse::<IpAddr>().unwrap(), "trust {trust:?}, proxies {proxies:?}, {sent:?}");
    }

    #[test]
    fn forwarded_addresses_are_believed_only_from_listed_proxies() {
        let forwarded = [("x-forwarded-for", "203.0.113.9")];
        check("true", "10.0.0.0/8", "10.1.2.3", &forwarded, "203.0.113.9");
        check("true", "10.0.0.0/8", "::ffff:10.1.2.3", &forwarded, "203.0.113.9");
        check("true", "10.0.0.0/8", "192.0.2.1", &forwarded, "192.0.2.1");
        check("false", "10.0.0.0/8", "10.1.2.3", &forwarded, "10.1.2.3");
        check("", "10.0.0.0/8", "10.1.2.3", &forwarded, "10.1.2.3");
    }

    #[test]
    fn what_a_client_wrote_before_the_proxy_is_not_believed() {
        let appended = [("x-forwarded-for", "127.0.0.1, 203.0.113.9")];
        check("true", "10.0.0.1", "10.0.0.1", &appended, "203.0.113.9");
        let two_fields = [("x-forwarded-for", "127.0.0.1"), ("x-forwarded-for", "203.0.113.9, 10.0.0.2")];
        check("true", "10.0.0.0/8", "10.0.0.1", &two_fields, "203.0.113.9");
        check("true", "10.0.0.0/8", "10.0.0.1", &[("x-forwarded-for", "127.0.0.1, nonsense, 10.0.0.2")], "10.0.0.2");
        check("true", "10.0.0.0/8", "10.0.0.1", &[("x-forwarded-for", "")], "10.0.0.1");
    }

    #[test]
    fn an_empty_list_believes_every_hop_outside_production() {
        check("true", "", "192.0.2.1", &[("x-forwarded-for", "203.0.113.9, 192.0.2.7")], "203.0.113.9");
    }

    #[test]
    fn other_headers_count_only_without_x_forwarded_for() {
        let all = [("x-real-ip", "203.0.113.1"), ("cf-connecting-ip", "203.0.113.2")];
        check("true", "10.0.0.1", "10.0.0.1", &all, "203.0.113.1");
        check("true", "10.0.0.1", "10.0.0.1", &all[1..], "203.0.113.2");
        check("true", "10.0.0.1", "10.0.0.1", &[("x-forwarded-for", " "), ("x-real-ip", ""), all[1]], "203.0.113.2");
        check("true", "10.0.0.1", "10.0.0.1", &[("x-forwarded-for", "?"), all[0]], "10.0.0.1");
        check("true", "10.0.0.1", "10.0.0.1", &[all[0], ("x-real-ip", "203.0.113.5")], "10.0.0.1");
    }

    #[test]
    fn entries_may_have_ports() {
        check("true", "10.0.0.1", "10.0.0.1", &[("x-forwarded-for", "203.0.113.9:4711")], "203.0.113.9");
        check("true", "10.0.0.1", "10.0.0.1", &[("x-forwarded-for", "[2001:db8::1]:4711")], "2001:db8::1");
    }

    #[test]
    fn https_counts_where_it_ends_here_or_at_a_proxy() {
        assert!(Scheme::Https.is_effectively_https(&HeaderMap::new()));
        assert!(Scheme::Http.is_effectively_https(&headers(&[("x-forwarded-proto", "HTTPS, http")])));
        assert!(!Scheme::Http.is_effectively_https(&headers(&[("x-forwarded-proto", "http")])));
        assert!(!Scheme::Http.is_effectively_https(&HeaderMap::new()));
    }
}
