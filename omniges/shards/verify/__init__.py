"""`omniges verify-shards`: proves a shard folder sound, or says to the byte what is wrong (docs/verify.md)."""

from omniges.shards.verify.findings import VERIFY_CODES, VerifyFinding
from omniges.shards.verify.report import render, write_report
from omniges.shards.verify.run import VerifyResult, VerifySettings, verify

__all__ = ["VERIFY_CODES", "VerifyFinding", "VerifyResult", "VerifySettings", "render", "verify", "write_report"]
