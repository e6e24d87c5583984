//! Networks behind a router that translates addresses, made with nftables.

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::Result;

use crate::network::Namespace;
use crate::process::run;

/// The range behind each router.
const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// What a router does with the addresses of the machine behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nat {
    /// Keeps ports, and whoever knows one gets in.
    FullCone,
    /// Keeps ports, and those get in that were sent to; the rest is dropped.
    Restricted,
    /// Gives each destination another port, and those get in that were sent to.
    Symmetric,
}

impl Nat {
    fn rules(self) -> String {
        let out = match self {
            Self::FullCone | Self::Restricted => "masquerade",
            Self::Symmetric => "masquerade random,fully-random",
        };
        let into = match self {
            Self::FullCone => format!("iifname eth0 meta l4proto udp dnat to {INSIDE};"),
            Self::Restricted | Self::Symmetric => String::new(),
        };
        format!(
            "table ip nat {{\n\
             chain out {{ type nat hook postrouting priority srcnat; oifname eth0 {out}; }}\n\
             chain into {{ type nat hook prerouting priority dstnat; {into} }}\n\
             chain unasked {{ type filter hook input priority filter; iifname eth0 meta l4proto udp ct state new drop; }}\n\
             }}"
        )
    }
}

impl Namespace {
    /// A machine behind this one, which becomes its router. It goes when this one is dropped.
    ///
    /// # Errors
    /// When an `ip` or `nft` command fails.
    pub fn behind(&self, nat: Nat) -> Result<Self> {
        let inside = Self::inner(format!("{}-in", self.name()), INSIDE);
        inside.create()?;
        let (router, name) = (self.name(), inside.name());
        for step in [
            format!("-n {router} link add inside type veth peer name eth0 netns {name}"),
            format!("-n {router} addr add {GATEWAY}/24 dev inside"),
            format!("-n {router} link set inside up"),
            format!("-n {name} link set lo up"),
            format!("-n {name} addr add {INSIDE}/24 dev eth0"),
            format!("-n {name} link set eth0 up"),
            format!("-n {name} route add default via {GATEWAY}"),
        ] {
            run(Command::new("ip").args(step.split_whitespace()))?;
        }
        run(self.command("sysctl").args(["-qw", "net.ipv4.ip_forward=1"]))?;
        run(self.command("nft").arg(nat.rules()))?;
        Ok(inside)
    }
}
