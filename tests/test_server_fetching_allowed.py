"""Allowed URLs, hosts and addresses, against the tricks of server-side request forgery."""

from __future__ import annotations

import asyncio
import random
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest
from fake_web import HOST, PICTURE, PUBLIC, FakeWeb, answer

from florence.errors import SettingsError, UrlError
from florence.server.fetching.allowed import (
    SPECIAL_IPV4,
    SPECIAL_IPV6,
    is_public,
    read_address,
    read_allow_list,
)
from florence.server.fetching.fetcher import PictureFetcher
from florence.server.fetching.urls import MAX_URL_CHARS, PictureUrl, parse_url

LOCAL = [  # 127.0.0.1, 169.254.169.254, 10.0.0.1 and their like, as IPv6 can hold them
    "127.0.0.1", "127.1.2.3", "0.0.0.0", "169.254.169.254", "10.0.0.1", "172.31.255.255", "192.168.1.1",
    "100.64.0.1", "100.100.100.200", "192.0.0.192", "198.18.0.1", "224.0.0.1", "239.255.255.250",
    "255.255.255.255", "240.0.0.1", "168.63.129.16", "192.88.99.1",
    "::1", "::", "::7f00:1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:a00:1::1",
    "2001::7f00:1", "2001:0:a00:1::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1",
    "ff02::1",
    "2001:db8::1", "3fff::1", "5f00::1", "100::1",
]  # fmt: skip


def ask(fetcher: PictureFetcher, url: str) -> bytes:
    """The bytes that the fetcher gets for this URL."""
    return bytes(asyncio.run(fetcher.fetch(url, timeout_s=60)))


@pytest.mark.parametrize("address", LOCAL)
def test_a_name_with_an_address_that_is_not_public_is_refused(address: str) -> None:
    """A name with a non-public address, also after a public one, is refused before a connection; the error
    does not show the address."""
    for found in ([address], [PUBLIC, address]):
        web = FakeWeb(names={HOST: found})
        with pytest.raises(UrlError, match="FLORENCE_IMAGE_NETWORKS") as refused:
            ask(web.fetcher("*"), f"http://{HOST}/")
        assert web.connections == []
        assert address not in str(refused.value)


@pytest.mark.parametrize("address", [each for each in LOCAL if "%" not in each])
def test_an_address_in_the_url_is_no_way_around_that(address: str) -> None:
    """A non-public address in the URL is refused even if the list of hosts has it, since networks are
    checked separately."""
    web = FakeWeb()
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(UrlError, match="FLORENCE_IMAGE_NETWORKS"):
        ask(web.fetcher(host), f"http://{host}/")
    assert (web.connections, web.lookups) == ([], [])


@pytest.mark.parametrize(
    "host",
    [
        "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "127.1", "127.0.1", "017700000001", "0",
        "127.0.0.1.5", "00127.0.0.1", "127.0.0.01", "0x", "1e3.0x1", "4294967296", "[::1%25lo]", "[::1%lo]",
        "[127.0.0.1]", "[::1", "::1", "[]", "[v1.a]", "", ".", "..", "a..b", ".a", "-a.test", "a-.test",
        "a" * 64, ".".join(["a" * 63] * 4) + ".b",
        "pictures.test@evil.test", "user:password@pictures.test", "@pictures.test",
        "pictures.test:80@evil.test",
        "evil.test\\@pictures.test", "evil.test\\.pictures.test", "pictures.test\\",
        "pictures.test%2eevil.test",
        "evil.test%00.pictures.test", "pictures.test%23.evil.test", "pictures.test:", "pictures.test:0",
        "pictures.test:65536", "pictures.test:80:80", "pictures.test:+80", "pictures.test:8 0",
        "pictures.test:x",
        "pictures.test:0x50", "pictures.test\r\nX: y", "pictures.test\n", "pictures.test\t", "pictures .test",
        "pictures.test\x00", "ⓟⓘⓒⓣⓤⓡⓔⓢ.test", "pictures。test", "１２７.0.0.1", "pictures.test\u200b",
        "münchen.test",
        "pictures.test;evil.test", "pictures.test,evil.test", "pictures.test&evil", "$(id).test",
        "a*b.test", "*",
    ],
)  # fmt: skip
def test_a_host_that_parsers_read_differently_is_refused(host: str) -> None:
    """Hosts that parsers read differently (numbers, users, backslashes, encoded dots, control characters,
    other scripts) are refused without lookup or connection, even where any name is allowed."""
    web = FakeWeb()
    with pytest.raises(UrlError, match="image_url"):
        ask(web.fetcher(f"*,{HOST}"), f"http://{host}/a.png")
    assert (web.connections, web.lookups) == ([], [])


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "gopher://pictures.test/_x", "ftp://pictures.test/a",
        "data:image/png;base64,QUJD",
        "//pictures.test/a.png", "http:pictures.test/a.png", "http:/pictures.test/a", "https:///a.png",
        "https://",
        "", " http://pictures.test/", "http://pictures.test/ ", "http://pictures.test/a b",
        "jar:http://pictures.test",
        "http\n://pictures.test/", "http://pictures.test/\r\nHost: evil.test", "http://pictures.test/a\\b",
        "http://pictures.test/ä", "http://pictures.test/" + "a" * MAX_URL_CHARS, "url:http://pictures.test",
        "http://?pictures.test", "http://#pictures.test", "unix:/var/run/docker.sock", "http+unix://a/b",
    ],
)  # fmt: skip
def test_what_is_no_url_of_a_picture_is_refused(url: str) -> None:
    """Other schemes, other forms, and characters that could end a line of the request are refused."""
    web = FakeWeb()
    with pytest.raises(UrlError, match="image_url"):
        ask(web.fetcher(), url)
    assert (web.connections, web.lookups) == ([], [])


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("HTTPS://Pictures.TEST./a%20b?x=1&y=@#f", PictureUrl("https", HOST, 443, "/a%20b?x=1&y=@")),
        ("http://pictures.test:8080", PictureUrl("http", HOST, 8080, "/")),
        ("http://pictures.test?a=/../b", PictureUrl("http", HOST, 80, "/?a=/../b")),
        ("http://pictures.test#@evil.test/", PictureUrl("http", HOST, 80, "/")),
        ("http://[2606:4700:0:0::1]:443/", PictureUrl("http", "2606:4700::1", 443, "/")),
        ("http://192.0.2.1./", PictureUrl("http", "192.0.2.1", 80, "/")),
        ("https://xn--mnchen-3ya.test/", PictureUrl("https", "xn--mnchen-3ya.test", 443, "/")),
    ],
)
def test_a_url_has_one_form(text: str, parsed: PictureUrl) -> None:
    """Each URL has one normal form, so the checked host is the requested one."""
    assert parse_url(text) == parsed


def test_no_random_address_is_public_that_python_calls_otherwise() -> None:
    """Each address that counts as public is global by Python's own list, for random addresses and the
    edges of special networks."""
    chance = random.Random(19)
    edges = [
        IPv4Address(value) if network.version == 4 else IPv6Address(value)
        for network in (*SPECIAL_IPV4, *SPECIAL_IPV6, IPv6Network("2000::/3"), IPv4Network("172.16.0.0/12"))
        for value in (int(network.network_address) + step for step in (-1, 0, 1, network.num_addresses - 1))
        if value >= 0
    ]
    drawn4 = [IPv4Address(chance.getrandbits(32)) for _ in range(3000)]
    drawn6 = [IPv6Address(chance.getrandbits(128) >> chance.choice((0, 0, 64, 96))) for _ in range(3000)]
    public = [address for address in (*edges, *drawn4, *drawn6) if is_public(address)]
    assert len(public) > 2000
    for address in public:
        special = address.is_multicast or address.is_reserved or address.is_private or address.is_unspecified
        assert address.is_global, address
        assert not special, address


def test_a_translated_address_is_as_public_as_the_one_inside() -> None:
    """A NAT64 address is public exactly if the IPv4 address in it is, and a mapped one is read as IPv4."""
    chance = random.Random(6)
    for _ in range(500):
        inside = IPv4Address(chance.getrandbits(32))
        assert is_public(ip_address(f"64:ff9b::{inside}")) == is_public(inside)
        assert read_address(f"::ffff:{inside}") == inside


@pytest.mark.parametrize(
    ("networks", "address", "allowed"),
    [
        ("10.0.0.0/8", "10.9.8.7", True),
        ("10.0.0.0/8", "::ffff:10.9.8.7", True),
        ("10.0.0.0/8", "64:ff9b::10.9.8.7", True),
        ("10.0.0.0/8", "11.0.0.1", True),
        ("10.0.0.0/8", "192.168.0.1", False),
        ("10.0.0.0/8,fd00::/8", "fd12::1", True),
        ("10.0.0.5", "10.0.0.5", True),
        ("10.0.0.5", "10.0.0.6", False),
        ("::/0", "127.0.0.1", False),
    ],
)
def test_networks_are_allowed_beside_public_addresses(networks: str, address: str, allowed: bool) -> None:
    """Allowed networks are added to public addresses."""
    assert read_allow_list(HOST, networks).allows(read_address(address)) is allowed


@pytest.mark.parametrize(
    ("hosts", "url", "allowed"),
    [
        (HOST, "https://pictures.test/", True),
        ("PICTURES.test.", "http://Pictures.Test./", True),
        (HOST, "http://pictures.test:8080/", False),
        (HOST, "http://pictures.test:443/", False),
        (HOST, "http://a.pictures.test/", False),
        (HOST, "http://pictures.test.evil.test/", False),
        (HOST, "http://evilpictures.test/", False),
        ("pictures.test:8080", "http://pictures.test:8080/", True),
        ("pictures.test:8080", "http://pictures.test/", False),
        ("pictures.test:443", "https://pictures.test/", True),
        ("*.pictures.test", "http://a.b.pictures.test/", True),
        ("*.pictures.test", "http://pictures.test/", False),
        ("*.pictures.test", "http://evilpictures.test/", False),
        ("a.test, *.pictures.test:9000", "http://b.pictures.test:9000/", True),
        ("*", "https://any.test/", True),
        ("*", "https://any.test:22/", False),
        ("*", "https://93.184.216.34/", False),
        ("*", "https://[2606:4700::1]/", False),
        ("*:9000", "http://any.test:9000/", True),
        ("93.184.216.34", "http://93.184.216.34/", True),
        ("[2606:4700:0::1]:81", "http://[2606:4700::1]:81/", True),
    ],
)
def test_the_list_of_hosts_is_names_ports_and_patterns(hosts: str, url: str, allowed: bool) -> None:
    """A host without a port allows its scheme's port; a star stands for labels of a name, not for
    addresses."""
    allow_list, parsed = read_allow_list(hosts, None), parse_url(url)
    if allowed:
        allow_list.check_host(parsed)
    else:
        with pytest.raises(UrlError, match=r"FLORENCE_IMAGE_HOSTS does not allow .*image_url|image_url.*"):
            allow_list.check_host(parsed)


@pytest.mark.parametrize(
    "hosts", ["https://a.test", "a.test/b", "a b", "*a.test", "a.*.test", "10.1", "a:99999", "**"]
)
def test_a_wrong_entry_stops_the_start(hosts: str) -> None:
    """A wrong host in the setting is an error at start-up."""
    with pytest.raises(SettingsError, match="FLORENCE_IMAGE_HOSTS"):
        read_allow_list(f"good.test,{hosts}", None)


@pytest.mark.parametrize("networks", ["10.0.0.1/8", "10.0.0.0/33", "private", "a.test"])
def test_a_wrong_network_stops_the_start(networks: str) -> None:
    """A wrong network in the setting is an error at start-up."""
    with pytest.raises(SettingsError, match="FLORENCE_IMAGE_NETWORKS"):
        read_allow_list(HOST, f"fd00::/8,{networks}")


def test_an_allowed_network_is_reached() -> None:
    """A cluster's storage in an allowed network is reached by its name."""
    web = FakeWeb(names={"minio": ["10.1.2.3"]}, pages={"http://minio:9000/a.png": [answer()]})
    assert ask(web.fetcher("minio:9000", "10.0.0.0/8"), "http://minio:9000/a.png") == PICTURE
    assert web.connections == [("10.1.2.3", 9000)]
