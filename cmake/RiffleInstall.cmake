# find_package(riffle) -> riffle::riffle
include(CMakePackageConfigHelpers)

install(TARGETS riffle EXPORT riffleTargets)
install(DIRECTORY include/riffle DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT riffleTargets NAMESPACE riffle:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/riffle)
configure_package_config_file(cmake/riffleConfig.cmake.in riffleConfig.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/riffle)
write_basic_package_version_file(riffleConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/riffleConfig.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/riffleConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/riffle)
