//! Who asks, from where, for what, and may they?

use std::net::{IpAddr, SocketAddr};

use doorman_crds::DoormanApiSpec;
use doorman_crds::api::{EndpointSpec, IpMode, IpSpec};

use super::super::cases::{Person, ROLES, Standing, World};
use super::super::stage::Ask;
use super::{Model, No};

/// An address as one number, and of how many bits.
fn bits(address: IpAddr) -> (u128, u32) {
    match address.to_canonical() {
        IpAddr::V4(v4) => (u32::from(v4).into(), 32),
        IpAddr::V6(v6) => (v6.into(), 128),
    }
}

pub(super) fn within(networks: &[impl AsRef<str>], address: IpAddr) -> bool {
    networks.iter().any(|network| {
        let (net, length) = network.as_ref().split_once('/').unwrap_or((network.as_ref(), "128"));
        let (Ok(net), Ok(length)) = (net.parse::<IpAddr>(), length.parse::<u32>()) else { return false };
        let ((net, bits_of_net), (address, bits_of_address)) = (bits(net), bits(address));
        // Of an IPv4 network in IPv6 clothes the first 96 bits say only that.
        let length = if network.as_ref().contains("::ffff:") { length.saturating_sub(96) } else { length };
        let rest = bits_of_net.saturating_sub(length);
        bits_of_net == bits_of_address && net.checked_shr(rest) == address.checked_shr(rest)
    })
}

/// Decoded segments of a path that has one reading.
pub(super) fn segments(path: &str) -> Result<Vec<String>, No> {
    const UNCLEAR: No = No(400, "GTW011");
    let mut segments = Vec::new();
    for raw in path.split('/').filter(|raw| !raw.is_empty()) {
        let mut parts = raw.split('%');
        let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
        for part in parts {
            let byte = part.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
            match byte {
                None | Some(b'/' | b'\\' | b';' | b'#' | ..=31 | 127) => return Err(UNCLEAR),
                Some(byte) => bytes.push(byte),
            }
            bytes.extend(&part.as_bytes()[2..]);
        }
        let segment = String::from_utf8(bytes).or(Err(UNCLEAR))?;
        if [".", ".."].contains(&segment.split(';').next().unwrap_or_default()) {
            return Err(UNCLEAR);
        }
        segments.push(segment);
    }
    Ok(segments)
}

pub(super) fn client_uri(endpoint: &EndpointSpec) -> &str {
    endpoint.client_uri.as_deref().unwrap_or(&endpoint.uri)
}

pub(super) fn parts(uri: &str) -> Vec<&str> {
    uri.split('/').filter(|part| !part.is_empty()).collect()
}

pub(super) fn label(api: &DoormanApiSpec) -> String {
    format!("{}/{}", api.name, api.version)
}

/// Method, and path with the API's name.
pub(super) fn name(api: &DoormanApiSpec, endpoint: &EndpointSpec) -> String {
    format!("{} {}{}", endpoint.method.as_str(), label(api), client_uri(endpoint))
}

/// The endpoint of a call; where several match, the one that is literal where they first differ.
pub(super) fn endpoint<'a>(api: &'a DoormanApiSpec, method: &str, path: &[&str]) -> Option<&'a EndpointSpec> {
    let matches = |endpoint: &&EndpointSpec| {
        let parts = parts(client_uri(endpoint));
        endpoint.method.as_str() == method
            && parts.len() == path.len()
            && parts.iter().zip(path).all(|(part, segment)| part.starts_with('{') || part == segment)
    };
    let parameters = |endpoint: &&EndpointSpec| {
        parts(client_uri(endpoint)).iter().map(|part| part.starts_with('{')).collect::<Vec<_>>()
    };
    api.endpoints.iter().flatten().filter(matches).min_by_key(parameters)
}

/// Does it ask nobody who calls?
pub(super) fn is_open(api: &DoormanApiSpec) -> bool {
    api.public == Some(true) || api.auth_required == Some(false)
}

fn is_admin(role: &str) -> bool {
    role == "admin" || ROLES.contains(&(role, true))
}

impl<'a> Model<'a> {
    /// The user of a token that counts, or why there is none. A cookie's token wins.
    pub(super) fn caller(&self, ask: &Ask) -> Result<&'a Person, &'static str> {
        let mut cookies = ask.get("cookie").unwrap_or_default().split(';');
        let cookie = cookies.find_map(|pair| pair.trim().strip_prefix("access_token_cookie="));
        let cookie = cookie.map(|value| value.trim_matches('"')).filter(|value| !value.is_empty());
        let words: Vec<&str> = ask.get("authorization").unwrap_or_default().split_whitespace().collect();
        let header = match words[..] {
            [word] => Some(word),
            [scheme, word] if scheme.eq_ignore_ascii_case("bearer") => Some(word),
            _ => None,
        };
        let text = cookie.or(header).ok_or("no token")?;
        let at = self.tokens.iter().position(|known| known == text).ok_or("no token of ours")?;
        let token = &self.world.tokens[at];
        match token.standing {
            Standing::Forged => return Err("a forged token"),
            Standing::Revoked => return Err("a revoked token"),
            Standing::Good if self.elapsed() >= i64::try_from(token.life).unwrap() * 1_000 => {
                return Err("an old token");
            }
            Standing::Good => {}
        }
        let person = self.world.people.iter().find(|person| *person.user.username == *token.user);
        match person.ok_or("a user who is gone")? {
            person if person.is_revoked => Err("a user whose tokens are revoked"),
            person if !person.user.active => Err("a user who is not active"),
            person => Ok(person),
        }
    }

    /// The client: the peer, or who a believed proxy says it is; of several, the last that is no proxy.
    pub(super) fn client(&self, ask: &Ask, trusts: bool) -> IpAddr {
        let peer = ask.peer.to_canonical();
        let World { filter, options, .. } = self.world;
        let trusts_all = filter.proxies.is_empty() && !options.is_production;
        let is_proxy = |address| trusts && (trusts_all || within(&filter.proxies, address));
        let read = |text: &str| {
            let bare = text.trim().trim_start_matches('[').trim_end_matches(']');
            let address = bare.parse().or_else(|_| text.trim().parse::<SocketAddr>().map(|socket| socket.ip()));
            address.ok().map(|address: IpAddr| address.to_canonical())
        };
        if !is_proxy(peer) {
            return peer;
        }
        if let Some(list) = ask.get("x-forwarded-for").filter(|list| !list.trim().is_empty()) {
            let mut client = peer;
            for entry in list.rsplit(',') {
                let Some(address) = read(entry) else { break };
                client = address;
                if !is_proxy(client) {
                    break;
                }
            }
            return client;
        }
        let others = ["x-real-ip", "cf-connecting-ip"];
        others.into_iter().find_map(|name| read(ask.get(name)?)).unwrap_or(peer)
    }

    fn bypasses(&self, ask: &Ask) -> bool {
        let forwarding = ["x-forwarded-for", "x-real-ip", "cf-connecting-ip", "forwarded"];
        let is_on = self.world.filter.bypass.unwrap_or(!self.world.options.is_production);
        is_on && !forwarding.into_iter().any(|name| ask.get(name).is_some())
    }

    fn is_local(&self, ask: &Ask) -> bool {
        let docker = ["172.17.0.1", "192.168.65.1"];
        let in_docker = self.world.options.in_docker && within(&docker, ask.peer);
        self.bypasses(ask) && (ask.peer.to_canonical().is_loopback() || in_docker)
    }

    /// What the global filter has against a client.
    pub(super) fn filter(&self, ask: &Ask, client: IpAddr) -> Vec<No> {
        let filter = &self.world.filter;
        let mut reasons = Vec::new();
        if !filter.allow.is_empty() && !within(&filter.allow, client) {
            reasons.push(No(403, "SEC010"));
        }
        if within(&filter.deny, client) {
            reasons.push(No(403, "SEC011"));
        }
        if !reasons.is_empty() && self.is_local(ask) {
            self.hit("a local caller passes the filter");
            return Vec::new();
        }
        reasons
    }

    pub(super) fn find(&self, path: &[&str]) -> Result<&'a DoormanApiSpec, No> {
        let [name, version, ..] = path else { return Err(No(404, "GTW001")) };
        let api = self.world.apis.iter().find(|api| api.name == *name && api.version == *version);
        let api = api.ok_or(No(404, "GTW001"))?;
        let is_defined = |role: &String| role == "admin" || ROLES.iter().any(|(name, _)| name == role);
        let mut roles = api.access.iter().flat_map(|access| access.roles.iter().flatten());
        if roles.all(is_defined) { Ok(api) } else { Err(No(503, "GTW503")) }
    }

    /// What an API's own lists have against a client.
    fn listed(&self, ask: &Ask, ip: &IpSpec) -> Option<No> {
        let World { filter, options, .. } = self.world;
        let client = self.client(ask, ip.trust_forwarded_for.unwrap_or(filter.trusts));
        if within(ip.deny.as_deref().unwrap_or_default(), client) {
            self.hit(if client.is_ipv6() { "an IPv6 client that is denied" } else { "an IPv4 client that is denied" });
            return Some(No(403, "API011"));
        }
        if ip.mode != IpMode::Whitelist {
            return None;
        }
        if within(ip.allow.as_deref().unwrap_or_default(), client) {
            self.hit(if client.is_ipv6() {
                "an IPv6 client that is allowed"
            } else {
                "an IPv4 client that is allowed"
            });
            return None;
        }
        let host = ask.get("host").unwrap_or_default().split(':').next().unwrap_or_default();
        let names_here = ["localhost", "127.0.0.1"].contains(&host) && !options.is_production;
        if self.is_local(ask) || self.bypasses(ask) && names_here {
            self.hit("a local caller passes an API's list");
            return None;
        }
        Some(No(403, "API010"))
    }

    /// Why a call is not let in, in the order in which reasons count.
    pub(super) fn reasons(
        &self,
        ask: &Ask,
        api: Result<&DoormanApiSpec, No>,
        endpoint: Option<&EndpointSpec>,
        caller: Result<&Person, &'static str>,
    ) -> Vec<No> {
        let options = &self.world.options;
        let mut reasons = Vec::new();
        if ask.body.len() as u64 > options.rest_body.unwrap_or(options.body) {
            reasons.push(No(413, "REQ001"));
        }
        let api = match api {
            Ok(api) => api,
            Err(unknown) => {
                reasons.push(unknown);
                return reasons;
            }
        };
        let access = api.access.clone().unwrap_or_default();
        reasons.extend(access.ip.clone().and_then(|ip| self.listed(ask, &ip)));
        if endpoint.is_none() {
            reasons.push(No(404, "GTW003"));
        }
        match caller {
            _ if is_open(api) => {}
            Err(why) => {
                self.hit(why);
                reasons.push(No(401, "Unauthorized"));
            }
            Ok(Person { user, apis, .. }) => {
                if !apis.iter().any(|subscribed| *subscribed == label(api)) {
                    if !options.admins_subscribe && is_admin(&user.role) {
                        self.hit("an administrator needs no subscription");
                    } else {
                        reasons.push(No(403, "You are not subscribed to this resource"));
                    }
                }
                let has = |group: &String| user.groups.iter().any(|own| **own == **group);
                match access.groups {
                    None => {}
                    Some(groups) if groups.iter().any(has) => self.hit("a user of the group"),
                    Some(_) => reasons.push(No(401, "You do not have the correct group for this")),
                }
                match access.roles.unwrap_or_default() {
                    roles if roles.is_empty() => {}
                    roles if roles.iter().any(|role| **role == *user.role) => self.hit("a user of the role"),
                    _ => reasons.push(No(403, "GTW014")),
                }
            }
        }
        if api.active == Some(false) {
            reasons.push(No(403, "GTW012"));
        }
        reasons
    }
}
