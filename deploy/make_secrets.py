"""Make what docker-compose.yaml mounts as secrets, once, in deploy/secrets; existing ones stay.

    sudo .venv/bin/python deploy/make_secrets.py

Each is readable by the user of the container that mounts it alone, so this runs as root.
"""

import json
import os
import secrets
import sys
from base64 import urlsafe_b64encode
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from tidemark import secrets_store

FOLDER = Path(__file__).resolve().parent / "secrets"
#: As the Dockerfile says.
USER = 10001
# What the official images run as.
OTHERS = {
    "postgres_superuser": 999,
    "postgres_owner": 999,
    "postgres_analyst": 999,
    "postgres_airflow": 999,
    "redis.conf": 999,
}


def make(folder: Path) -> None:
    """Make every secret that is missing; those made of others follow them."""
    folder.mkdir(mode=0o700, exist_ok=True)

    def once(name: str, content: bytes) -> str:
        secrets_store.ensure_secret(folder, name, content)
        return (folder / name).read_text(encoding="latin-1").strip()

    def password(name: str) -> str:
        return once(name, secrets.token_urlsafe(32).encode())

    once("master.key", secrets.token_bytes(32))
    password("postgres_superuser")
    owner, analyst = password("postgres_owner"), password("postgres_analyst")
    airflow = password("postgres_airflow")
    clickhouse_owner, clickhouse_analyst = (
        password("clickhouse_owner"),
        password("clickhouse_analyst"),
    )
    redis = password("redis_password")
    cluster = password("clickhouse_cluster")
    once("redis.conf", f"requirepass {redis}\nappendonly yes\n".encode())
    once(
        "clickhouse.xml",
        "<clickhouse>\n"
        f"    <owner_password>{sha256(clickhouse_owner.encode()).hexdigest()}</owner_password>\n"
        f"    <analyst_password>{sha256(clickhouse_analyst.encode()).hexdigest()}"
        "</analyst_password>\n"
        f"    <cluster_secret>{cluster}</cluster_secret>\n"
        "</clickhouse>\n".encode(),
    )
    for name, login, word in (
        ("clickhouse_url", "tidemark", clickhouse_owner),
        ("clickhouse_analyst_url", "analyst", clickhouse_analyst),
    ):
        once(name, f"http://{login}:{quote(word, safe='')}@clickhouse:8123/".encode())
    for name, login, word in (
        ("postgres_url", "tidemark", owner),
        ("postgres_analyst_url", "analyst", analyst),
    ):
        once(name, f"postgresql://{login}:{quote(word, safe='')}@postgres:5432/tidemark".encode())
    database = f"airflow:{quote(airflow, safe='')}@postgres:5432/airflow"
    once("airflow_database_url", f"postgresql+psycopg://{database}".encode())
    once("airflow_result_backend", f"db+postgresql+psycopg://{database}".encode())
    once("airflow_broker_url", f"redis://:{quote(redis, safe='')}@redis:6379/0".encode())
    once("airflow_fernet_key", urlsafe_b64encode(secrets.token_bytes(32)))
    for name in ("airflow_secret_key", "airflow_jwt_secret"):
        once(name, secrets.token_urlsafe(64).encode())
    once("airflow_passwords.json", json.dumps({"admin": secrets.token_urlsafe(16)}).encode())


def main() -> None:
    """Make them in deploy/secrets and give them to the containers' users."""
    if os.geteuid() != 0:
        sys.exit("make_secrets: run it as root, who may give files to the containers' users")
    make(FOLDER)
    for path in FOLDER.iterdir():
        owner = OTHERS.get(path.name, USER)
        os.chown(path, owner, owner)


if __name__ == "__main__":
    main()
