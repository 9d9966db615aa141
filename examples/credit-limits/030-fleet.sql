update {{Rental Fleet}} set "Description" = upper("Description");
