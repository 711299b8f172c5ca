"""Pictures by URL: which URLs and addresses are allowed, and how a picture is fetched from one."""
