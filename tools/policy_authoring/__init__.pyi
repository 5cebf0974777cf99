from .listing import conformance as conformance
from .listing import description as description
from .listing import listing as listing
from .listing import listing_table as listing_table
from .listing import option_tables as option_tables
from .listing import report_lines as report_lines
from .listing import report_table as report_table
from .scaffold import write_policy as write_policy
