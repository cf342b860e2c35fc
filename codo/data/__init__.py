"""Images in: folders, COCO data sets, the decoded cache, the built-in sample data."""
