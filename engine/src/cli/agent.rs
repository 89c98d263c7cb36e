//! `blip agent`.

use super::Places;
use crate::docker::Docker;
use crate::patience::link_settings;
use crate::source::peer::PORT;
use crate::target::Agent;
use anyhow::Context as _;
use blip_transport::identity::{Identity, Peers, Trust};
use blip_transport::link::quic::Listener;
use clap::Args;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;

/// How the agent listens.
#[derive(Debug, Args)]
pub(super) struct AgentArgs {
    /// Address to listen on; all by default
    #[arg(long, default_value_t = IpAddr::V6(Ipv6Addr::UNSPECIFIED))]
    listen: IpAddr,
    /// UDP port to listen on
    #[arg(long, default_value_t = PORT)]
    port: u16,
}

pub(super) async fn run(args: AgentArgs, places: Places) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(nix::unistd::geteuid().is_root(), "the agent needs root: sudo blip agent");
    let docker = Docker::connect().await?;
    let blip = std::env::current_exe().context("finding my own path")?;
    let agent = Agent::start(docker, &places.state, &blip).await?;
    let identity = Identity::load_or_create(&places.identity)?;
    let trust = Trust::peers_in(&places.identity);
    let address = SocketAddr::new(args.listen, args.port);
    let mut listener = Listener::bind(address, &identity, trust, link_settings())?;
    if Peers::load(&places.identity)?.iter().next().is_none() {
        tracing::warn!("no host is paired yet: nobody can connect; see `blip pair --help`");
    }
    tracing::info!(%address, key = %identity.fingerprint(), "listening");
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        let arrival = tokio::select! {
            arrival = listener.accept() => arrival,
            _ = tokio::signal::ctrl_c() => break,
            _ = terminate.recv() => break,
        };
        match arrival {
            Some(Ok(session)) => drop(tokio::spawn(agent.clone().serve(session))),
            Some(Err(error)) => tracing::warn!("{error}"),
            None => break,
        }
    }
    agent.shut_down().await;
    Ok(ExitCode::SUCCESS)
}
