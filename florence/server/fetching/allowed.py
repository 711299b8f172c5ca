"""Which hosts pictures may come from, and to which addresses the service may connect for them.

Knows names, ports and addresses; opens no connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from florence.errors import SettingsError, UrlError, quote
from florence.server.fetching.urls import PictureUrl, parse_authority

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

OFF: Final = "pictures are not fetched from URLs here: FLORENCE_IMAGE_HOSTS must name their hosts"
# IANA's registries of special addresses (RFC 6890 and later), and 168.63.129.16, by which a machine in Azure
# reaches its host. Listed here, because Python's `is_global` differs between versions.
SPECIAL_IPV4: Final = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
            "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24",
            "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
            "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32",
        ),
    )
)  # fmt: skip
_UNICAST_IPV6: Final = IPv6Network("2000::/3")  # all that is assigned to hosts; the rest is special or unused
SPECIAL_IPV6: Final = tuple(
    map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"))
)
_NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052: IPv4 addresses as IPv6-only hosts see them


def read_address(text: str) -> Address:
    """The address that a connection goes to: an IPv4-mapped IPv6 address is read as IPv4. Raises ValueError
    for text that is not an address."""
    address = ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def is_public(address: Address) -> bool:
    """Whether it is an address of the public internet: not private, local, shared, multicast or reserved."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in SPECIAL_IPV4)
    if address in _NAT64:
        return is_public(_translated(address))
    return address in _UNICAST_IPV6 and not any(address in network for network in SPECIAL_IPV6)


def _translated(address: IPv6Address) -> IPv4Address:
    return IPv4Address(int(address) & 0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class Rule:
    """A host and port from which pictures may come.

    `host`: a name, an address, `*.` before a name for all its subdomains, or `*` for any name. `port`: None:
    the default port of the URL's scheme.
    """

    host: str
    port: int | None

    def allows(self, url: PictureUrl) -> bool:
        """Whether a picture may come from there."""
        port = url.is_default_port if self.port is None else url.port == self.port
        return port and self._allows_host(url.host)

    def _allows_host(self, host: str) -> bool:
        if not self.host.startswith("*"):
            return host == self.host
        is_name = ":" not in host and not host.rpartition(".")[2].isdecimal()
        return is_name and host.endswith(self.host[1:])


@dataclass(frozen=True, slots=True)
class AllowList:
    """`rules`: of FLORENCE_IMAGE_HOSTS; without any, nothing is fetched. `networks`: of
    FLORENCE_IMAGE_NETWORKS; their addresses are allowed in addition to public ones."""

    rules: Sequence[Rule] = ()
    networks: Sequence[Network] = ()

    def check_host(self, url: PictureUrl) -> None:
        """Raise UrlError where pictures may not come from the URL's host and port."""
        if not self.rules:
            raise UrlError(OFF)
        if not any(rule.allows(url) for rule in self.rules):
            raise UrlError(
                f"image_url: FLORENCE_IMAGE_HOSTS does not allow pictures from {quote(url.authority)}"
            )

    def allows(self, address: Address) -> bool:
        """Whether the service may connect to the address."""
        forms = [address]
        if isinstance(address, IPv6Address) and address in _NAT64:
            forms.append(_translated(address))
        return is_public(address) or any(form in network for form in forms for network in self.networks)


def read_allow_list(hosts: str | None, networks: str | None) -> AllowList:
    """The lists of the two settings, separated by commas. Raises SettingsError, which names the entry."""
    return AllowList(
        [_rule(entry) for entry in _entries(hosts)], [_network(entry) for entry in _entries(networks)]
    )


def _entries(text: str | None) -> list[str]:
    return [entry.strip() for entry in (text or "").split(",") if entry.strip()]


def _rule(entry: str) -> Rule:
    wild = entry[:1] == "*" and entry[1:2] in ("", ".", ":")
    found = parse_authority(f"any{entry[1:]}" if wild else entry)  # with a label in place of the star
    if found is None:
        raise SettingsError(
            f"FLORENCE_IMAGE_HOSTS: {quote(entry)} is not a host such as images.example, *.images.example, "
            "images.example:8443, 10.0.0.5:9000 or [fd00::5]:9000"
        )
    host, port = found
    return Rule(f"*{host.removeprefix('any')}" if wild else host, port)


def _network(entry: str) -> Network:
    try:
        return ip_network(entry)
    except ValueError as error:
        raise SettingsError(
            f"FLORENCE_IMAGE_NETWORKS: {quote(entry)} is not a network such as 10.0.0.0/8 or fd00::/8 "
            f"({error})"
        ) from None
