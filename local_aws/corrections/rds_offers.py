"""Which PostgreSQL versions and classes RDS offers: DescribeDBEngineVersions is missing in moto,
DescribeOrderableDBInstanceOptions knows no postgres, and CreateDBInstance takes any version and class.

The versions are a believable selection of those that RDS offered at the end of 2025, not a mirror of today's.

Sources: https://docs.aws.amazon.com/AmazonRDS/latest/APIReference/API_DescribeDBEngineVersions.html
https://docs.aws.amazon.com/AmazonRDS/latest/PostgreSQLReleaseNotes/postgresql-release-calendar.html
https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/Concepts.DBInstanceClass.Support.html
"""

from __future__ import annotations

from typing import Any

from moto.core.responses import PaginatedResult
from moto.rds.exceptions import InvalidParameterCombination
from moto.rds.models import DBInstance, RDSBackend
from moto.rds.responses import RDSResponse

from local_aws.patching import Patcher

MINORS = {14: range(12, 21), 15: range(7, 16), 16: range(3, 12), 17: range(1, 8)}
DEFAULT_MAJOR = 17
LICENSE = "postgresql-license"
STORAGE_TYPES = ("gp2", "gp3", "io1", "io2")
BURSTABLE_SIZES = ("micro", "small", "medium", "large", "xlarge", "2xlarge")
SIZES = ("large", "xlarge", "2xlarge", "4xlarge", "8xlarge", "12xlarge", "16xlarge")
FAMILIES = ("m5", "m6g", "m6i", "m7g", "m7i", "m8g", "r5", "r6g", "r6i", "r7g", "r7i", "r8g")
CLASSES = {**dict.fromkeys(("t3", "t4g"), BURSTABLE_SIZES), **dict.fromkeys(FAMILIES, SIZES)}


def versions() -> list[str]:
    """Every version that is offered, oldest first."""
    return [f"{major}.{minor}" for major, minors in MINORS.items() for minor in minors]


def default_version(major: int = DEFAULT_MAJOR) -> str:
    """The version that RDS takes when none, or only a major one, is named: not the newest but the one before."""
    return f"{major}.{MINORS[major][-2]}"


def matching(version: str | None) -> list[str]:
    """The offered versions that a version names: itself, or all of a major one; all for None."""
    return [v for v in versions() if version in (None, v, v.partition(".")[0])]


def classes() -> list[str]:
    return [f"db.{family}.{size}" for family, sizes in CLASSES.items() for size in sizes]


def _engine_version(version: str) -> dict[str, Any]:
    major = version.partition(".")[0]
    return {
        "Engine": "postgres",
        "EngineVersion": version,
        "MajorEngineVersion": major,
        "DBParameterGroupFamily": f"postgres{major}",
        "DBEngineDescription": "PostgreSQL",
        "DBEngineVersionDescription": f"PostgreSQL {version}-R1",
        "ValidUpgradeTarget": [
            {
                "Engine": "postgres",
                "EngineVersion": target,
                "Description": f"PostgreSQL {target}-R1",
                "AutoUpgrade": False,
                "IsMajorVersionUpgrade": target.partition(".")[0] != major,
            }
            for target in versions()[versions().index(version) + 1 :]
        ],
        "ExportableLogTypes": ["postgresql", "upgrade"],
        "SupportsLogExportsToCloudwatchLogs": True,
        "SupportsReadReplica": True,
        "SupportedFeatureNames": ["Lambda", "s3Import", "s3Export"],
        "Status": "available",
        "SupportsParallelQuery": False,
        "SupportsGlobalDatabases": False,
        "SupportsBabelfish": False,
        "SupportsCertificateRotationWithoutRestart": True,
        "SupportedCACertificateIdentifiers": ["rds-ca-rsa2048-g1", "rds-ca-ecc384-g1", "rds-ca-rsa4096-g1"],
        "TagList": [],
    }


def _option(region: str, version: str, instance_class: str, storage_type: str) -> dict[str, Any]:
    provisioned = storage_type in ("gp3", "io1", "io2")
    return {
        "Engine": "postgres",
        "EngineVersion": version,
        "DBInstanceClass": instance_class,
        "LicenseModel": LICENSE,
        "AvailabilityZones": [{"Name": f"{region}{letter}"} for letter in "abc"],
        "MultiAZCapable": True,
        "ReadReplicaCapable": True,
        "Vpc": True,
        "SupportsStorageEncryption": True,
        "StorageType": storage_type,
        "SupportsIops": provisioned,
        "SupportsStorageThroughput": storage_type == "gp3",
        "SupportsEnhancedMonitoring": True,
        "SupportsIAMDatabaseAuthentication": True,
        "SupportsPerformanceInsights": True,
        "MinStorageSize": 100 if storage_type in ("io1", "io2") else 20 if storage_type == "gp3" else 5,
        "MaxStorageSize": 65536,
        "SupportsStorageAutoscaling": True,
        "SupportsKerberosAuthentication": True,
        "OutpostCapable": False,
        "SupportsGlobalDatabases": False,
        "SupportsClusters": False,
        "SupportedNetworkTypes": ["IPV4", "DUAL"],
    }


def _flag(value: Any) -> bool:
    return value is True or str(value).lower() == "true"


def apply(patch: Patcher) -> None:
    orderable, create = RDSResponse.describe_orderable_db_instance_options, RDSBackend.create_db_instance

    def describe_db_engine_versions(self: RDSResponse) -> PaginatedResult:
        engine = self.params.get("Engine")
        wanted = self.params.get("EngineVersion")
        family = self.params.get("DBParameterGroupFamily")
        found = matching(wanted) if engine in (None, "postgres") else []
        if _flag(self.params.get("DefaultOnly")):
            majors = {v.partition(".")[0] for v in found} if wanted else {str(DEFAULT_MAJOR)}
            found = [v for v in found if v in {default_version(int(major)) for major in majors}]
        for wish in self.params.get("Filters") or []:
            field = {"engine": "Engine", "engine-version": "EngineVersion", "status": "Status"}.get(wish["Name"])
            if field is not None:
                found = [v for v in found if _engine_version(v)[field] in wish["Values"]]
        described = [_engine_version(v) for v in found]
        return PaginatedResult(
            {"DBEngineVersions": [d for d in described if family in (None, d["DBParameterGroupFamily"])]}
        )

    def describe_orderable_db_instance_options(self: RDSResponse) -> Any:
        if self.params.get("Engine") != "postgres":
            return orderable(self)
        wanted_class, wanted_license = self.params.get("DBInstanceClass"), self.params.get("LicenseModel")
        options = [
            _option(self.region, version, instance_class, storage_type)
            for version in matching(self.params.get("EngineVersion"))
            for instance_class in classes()
            if wanted_class in (None, instance_class) and wanted_license in (None, LICENSE)
            for storage_type in STORAGE_TYPES
        ]
        return PaginatedResult({"OrderableDBInstanceOptions": options})

    def create_db_instance(self: RDSBackend, db_kwargs: Any) -> DBInstance:
        if db_kwargs.get("engine") == "postgres":
            wanted = db_kwargs.get("engine_version")
            if not matching(wanted):
                raise InvalidParameterCombination(f"Cannot find version {wanted} for postgres")
            version = wanted if wanted in versions() else default_version(int(wanted or DEFAULT_MAJOR))
            db_kwargs["engine_version"] = version
            instance_class = db_kwargs.get("db_instance_class")
            if instance_class not in classes():
                combination = f"Engine=postgres, EngineVersion={version}, LicenseModel={LICENSE}"
                raise InvalidParameterCombination(
                    "RDS does not support creating a DB instance with the following combination: "
                    f"DBInstanceClass={instance_class}, {combination}. "
                    "For supported combinations of instance class and database engine version, see the documentation."
                )
        return create(self, db_kwargs)

    patch.setattr(RDSResponse, "describe_db_engine_versions", describe_db_engine_versions, raising=False)
    patch.setattr(RDSResponse, "describe_orderable_db_instance_options", describe_orderable_db_instance_options)
    patch.setattr(RDSBackend, "create_db_instance", create_db_instance)
