//! What requests are decided with: whose forwarding headers are believed, and which addresses are let in.

use std::net::{IpAddr, Ipv4Addr};

use http::HeaderMap;

use super::{Effective, SecuritySettings};
use crate::{
    client::{ClientAddress, Trust, effective, is_forwarded},
    networks::Networks,
};

/// What Docker's own proxies show as the address of a caller on the same machine.
const DOCKER: [Ipv4Addr; 2] = [Ipv4Addr::new(172, 17, 0, 1), Ipv4Addr::new(192, 168, 65, 1)];

/// The settings in force, compiled.
#[derive(Clone, Debug)]
pub struct Active {
    /// What someone has set.
    pub stored: SecuritySettings,
    /// What is in force.
    pub effective: Effective,
    pub(super) trust: Trust,
    /// Whose headers an API believes that says it believes them.
    pub(super) trust_of_apis: Trust,
    /// `None`: all are let in.
    pub(super) allow: Option<Networks>,
    pub(super) deny: Networks,
    pub(super) in_docker: bool,
    pub(super) is_production: bool,
}

/// Why an address is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It isn't on the allow list.
    NotAllowed,
    /// It is on the deny list.
    Denied,
}

impl Refusal {
    /// The code of the reference.
    pub fn code(self) -> &'static str {
        match self {
            Self::NotAllowed => "SEC010",
            Self::Denied => "SEC011",
        }
    }

    /// What the client reads.
    pub fn message(self) -> &'static str {
        match self {
            Self::NotAllowed => "IP not allowed",
            Self::Denied => "IP blocked",
        }
    }

    /// The audit trail's word for it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotAllowed => "not_in_whitelist",
            Self::Denied => "blacklisted",
        }
    }
}

/// Is it an address of this machine or of a private network?
fn is_near(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local(),
    }
}

impl Active {
    /// Whose headers are believed.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// The addresses of who sent this.
    pub fn client(&self, headers: &HeaderMap, peer: IpAddr) -> ClientAddress {
        ClientAddress::new(headers, &self.trust, peer)
    }

    /// The address that an API's rules are about; `trusts`: what the API says of forwarding headers, if anything.
    pub fn address_for_api(&self, headers: &HeaderMap, client: &ClientAddress, trusts: Option<bool>) -> IpAddr {
        match trusts {
            None => client.effective,
            Some(false) => client.peer,
            Some(true) => effective(headers, &self.trust_of_apis, client.peer),
        }
    }

    /// The address whose sign-ins are counted: behind a proxy that may be believed it is the client's, whatever else is
    /// believed of forwarding headers (reference: platform API 4). Where all may be believed, only those are that are no
    /// strangers: else anyone could guess passwords without end.
    pub fn address_for_sign_ins(&self, headers: &HeaderMap, client: &ClientAddress) -> IpAddr {
        if self.trust_of_apis == Trust::Everyone && !is_near(client.peer) {
            return client.effective;
        }
        effective(headers, &self.trust_of_apis, client.peer)
    }

    /// Is it a caller that skips an API's address rules? Outside production so does one who names this machine as the
    /// host: through a port that a container engine maps, local callers don't come from a local address.
    pub fn skips_rules_of_apis(&self, headers: &HeaderMap, peer: IpAddr) -> bool {
        let names_this_machine = || {
            let host = headers.get(http::header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
            let name = host.split(':').next().unwrap_or_default();
            name.eq_ignore_ascii_case("localhost") || name == "127.0.0.1"
        };
        self.skips_address_rules(headers, peer)
            || (!self.is_production
                && self.effective.allow_localhost_bypass
                && !is_forwarded(headers)
                && names_this_machine())
    }

    /// Is it a caller on this machine that skips the address rules?
    pub fn skips_address_rules(&self, headers: &HeaderMap, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        let is_local = peer.is_loopback() || self.in_docker && DOCKER.iter().any(|address| peer == *address);
        self.effective.allow_localhost_bypass && is_local && !is_forwarded(headers)
    }

    /// The global filter: may this caller be served at all?
    pub fn admit(&self, headers: &HeaderMap, peer: IpAddr) -> Result<(), Refusal> {
        if self.allow.is_none() && self.deny.is_empty() || self.skips_address_rules(headers, peer) {
            return Ok(());
        }
        let address = self.client(headers, peer).effective;
        if self.allow.as_ref().is_some_and(|allow| !allow.contains(address)) {
            return Err(Refusal::NotAllowed);
        }
        if self.deny.contains(address) { Err(Refusal::Denied) } else { Ok(()) }
    }
}
