"""The names of :mod:`mixloop.contract` under their former path, for one release."""

# ruff: noqa: PLC0414 - re-exported, for type checkers too
from mixloop.contract import Limits as Limits
from mixloop.contract import Line as Line
from mixloop.contract import Manifest as Manifest
from mixloop.contract import OpenLine as OpenLine
from mixloop.contract import Order as Order
from mixloop.contract import Rejection as Rejection
from mixloop.contract import RunPaths as RunPaths
from mixloop.contract import Schedule as Schedule
from mixloop.contract import ScheduleWriter as ScheduleWriter
from mixloop.contract import SegmentLine as SegmentLine
from mixloop.contract import Stage as Stage
from mixloop.contract import Status as Status
from mixloop.contract import VoidLine as VoidLine
from mixloop.contract import read_holds as read_holds
from mixloop.contract import read_manifest as read_manifest
from mixloop.contract import read_order as read_order
from mixloop.contract import read_schedule as read_schedule
from mixloop.contract import read_status as read_status
from mixloop.contract import write_holds as write_holds
from mixloop.contract import write_manifest as write_manifest
from mixloop.contract import write_order as write_order
from mixloop.contract import write_status as write_status
