"""Identity: the fleet's own certificate authority, and one P-384 key a robot.

A robot's single key is its MQTT and HTTPS client certificate (CN = robot id) and, in OpenSSH form,
its SuperNode key. Layout under the coordinator's folder:

    ca/{ca.pem,ca.key}            the authority; ca.key signs, keep it
    server/{cert.pem,key.pem}     broker, SuperLink and HTTPS server
    identity/{cert.pem,key.pem}   the coordinator as an MQTT client (CN = coordinator)
    agents.json                   who is enrolled: public key, fingerprint, when
"""

from __future__ import annotations

import datetime
import ipaddress
import json
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pydantic import BaseModel, ConfigDict, ValidationError

from coordinator.config import CoordinatorConfig
from coordinator.errors import EnrolmentError
from coordinator.identity.layout import Layout
from host.files import write_durable
from protocol.bundle import BUNDLE_NAME, BundleInfo, Endpoint
from protocol.errors import BadTopic
from protocol.topics import COORDINATOR_IDENTITY, check_agent_id

CA_DAYS = 3650
LEAF_DAYS = 825
# Clocks of freshly flashed boards lag; a certificate must not start in their future.
BACKDATE = datetime.timedelta(hours=24)


class EnrolledAgent(BaseModel):
    """One line of agents.json. `public_key` is the OpenSSH form `ecdsa-sha2-nistp384 AAAA…`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    agent_id: str
    public_key: str
    certificate_sha256: str
    enrolled_unix_s: float


class Authority:
    """The fleet's certificate authority. Times come from `wall`, a clock of aware datetimes."""

    def __init__(
        self,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        wall: Callable[[], datetime.datetime],
    ) -> None:
        self.certificate = certificate
        self._key = key
        self._wall = wall

    @classmethod
    def create(cls, fleet: str, wall: Callable[[], datetime.datetime]) -> Authority:
        """A new authority that may sign leaves and nothing below them."""
        key = ec.generate_private_key(ec.SECP384R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Armada {fleet} authority")])
        now = wall()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(now + datetime.timedelta(days=CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .sign(key, hashes.SHA384())
        )
        return cls(certificate, key, wall)

    @classmethod
    def load(cls, layout: Layout, wall: Callable[[], datetime.datetime]) -> Authority:
        """Raises EnrolmentError when `layout` was never initialised or does not belong together."""
        try:
            certificate = x509.load_pem_x509_certificate(layout.ca_certificate.read_bytes())
            key = serialization.load_pem_private_key(layout.ca_key.read_bytes(), password=None)
        except FileNotFoundError as error:
            raise EnrolmentError(
                f"{error.filename} does not exist; start with "
                f"`armada coordinator init --dir {layout.root}`"
            ) from error
        except ValueError as error:
            raise EnrolmentError(
                f"{layout.root / 'ca'} holds no usable authority: {error}"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or (
            key.public_key() != certificate.public_key()
        ):
            raise EnrolmentError(f"{layout.ca_key} is not the key of {layout.ca_certificate}")
        return cls(certificate, key, wall)

    def save(self, layout: Layout) -> None:
        """Write certificate and key (mode 0600)."""
        write_durable(layout.ca_key, _private_pem(self._key), mode=0o600)
        write_durable(layout.ca_certificate, _certificate_pem(self.certificate))

    def issue(
        self,
        common_name: str,
        public_key: ec.EllipticCurvePublicKey,
        *,
        hosts: tuple[str, ...] = (),
    ) -> x509.Certificate:
        """A server certificate when `hosts` are given, else a client certificate; never both."""
        now = self._wall()
        usage = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(now + datetime.timedelta(days=LEAF_DAYS))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general_name(host) for host in hosts]),
                critical=False,
            )
        return builder.sign(self._key, hashes.SHA384())


def create_identities(layout: Layout, config: CoordinatorConfig, authority: Authority) -> None:
    """Write the authority, the server's certificate and the coordinator's own client identity."""
    authority.save(layout)
    hosts = tuple(dict.fromkeys((config.host, "localhost", "127.0.0.1", "::1")))
    server = ec.generate_private_key(ec.SECP384R1())
    certificate = authority.issue("armada-server", server.public_key(), hosts=hosts)
    write_durable(layout.server_key, _private_pem(server), mode=0o600)
    write_durable(layout.server_certificate, _certificate_pem(certificate))
    own = ec.generate_private_key(ec.SECP384R1())
    write_durable(layout.identity_key, _private_pem(own), mode=0o600)
    write_durable(
        layout.identity_certificate,
        _certificate_pem(authority.issue(COORDINATOR_IDENTITY, own.public_key())),
    )


def enrolled_agents(layout: Layout) -> dict[str, EnrolledAgent]:
    """Everybody in agents.json by id; raises EnrolmentError when it cannot be read."""
    try:
        content = json.loads(layout.registry.read_bytes())
        agents = [EnrolledAgent.model_validate(entry) for entry in content["agents"]]
    except FileNotFoundError:
        return {}
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise EnrolmentError(f"{layout.registry} cannot be read: {error}") from error
    return {agent.agent_id: agent for agent in agents}


def enrol(
    layout: Layout,
    config: CoordinatorConfig,
    agent_id: str,
    out: Path,
    authority: Authority,
    now_unix_s: float,
) -> EnrolledAgent:
    """Make the key and bundle of one robot, and put it into agents.json.

    The private key is written to `out` only. Raises EnrolmentError for a name that is taken or
    cannot be an identity, and when `out` already holds a bundle.
    """
    try:
        check_agent_id(agent_id)
    except BadTopic as error:
        raise EnrolmentError(str(error)) from error
    agents = enrolled_agents(layout)
    if agent_id in agents:
        raise EnrolmentError(f"robot {agent_id!r} is already enrolled; choose another id")
    if (out / BUNDLE_NAME).exists():
        raise EnrolmentError(f"{out} already holds a bundle; choose an empty folder")
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = authority.issue(agent_id, key.public_key())
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    private_openssh = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    info = BundleInfo(
        agent_id=agent_id,
        fleet=config.fleet,
        mqtt=Endpoint(host=config.host, port=config.ports.mqtt),
        superlink=Endpoint(host=config.host, port=config.ports.superlink),
        https=Endpoint(host=config.host, port=config.ports.https),
    )
    out.mkdir(parents=True, exist_ok=True)
    out.chmod(0o700)
    write_durable(out / "ca.pem", _certificate_pem(authority.certificate))
    write_durable(out / "cert.pem", _certificate_pem(certificate))
    write_durable(out / "key.pem", _private_pem(key), mode=0o600)
    write_durable(out / "supernode_key", private_openssh, mode=0o600)
    write_durable(out / "supernode_key.pub", public + b"\n")
    write_durable(out / BUNDLE_NAME, info.model_dump_json(indent=2).encode() + b"\n")
    agent = EnrolledAgent(
        agent_id=agent_id,
        public_key=public.decode(),
        certificate_sha256=certificate.fingerprint(hashes.SHA256()).hex(),
        enrolled_unix_s=now_unix_s,
    )
    agents[agent_id] = agent
    registry = {"agents": [entry.model_dump() for _, entry in sorted(agents.items())]}
    write_durable(layout.registry, json.dumps(registry, indent=2).encode() + b"\n")
    return agent


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
